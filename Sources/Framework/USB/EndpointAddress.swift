// SPDX-License-Identifier: Apache-2.0

/// The direction of an endpoint or a control data stage, as the host sees it.
public enum Direction: Sendable {
    /// Host to device.
    case out
    /// Device to host.
    case `in`
}

/// An endpoint's number and direction, as in `bEndpointAddress` (USB 2.0, table 9-13).
public struct EndpointAddress: RawRepresentable, Hashable, Sendable {
    /// Bit 7 is the direction (set: IN), bits 3:0 the number.
    public let rawValue: UInt8

    /// Reserved bits are dropped.
    public init(rawValue: UInt8) { self.rawValue = rawValue & 0x8f }

    /// The endpoint `number` (0...15) in `direction`.
    public init(_ number: UInt8, _ direction: Direction) {
        self.init(rawValue: (number & 0xf) | (direction == .in ? 0x80 : 0))
    }

    /// The default control endpoint, whose transfers go both ways.
    public static let control = EndpointAddress(rawValue: 0)

    /// 0...15.
    public var number: UInt8 { rawValue & 0xf }
    public var direction: Direction { rawValue & 0x80 != 0 ? .in : .out }
}
