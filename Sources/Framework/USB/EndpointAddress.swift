// SPDX-License-Identifier: Apache-2.0

/// The direction of data, as the host sees it.
public enum Direction: Sendable {
    /// Host to device.
    case out
    /// Device to host.
    case `in`
}

/// The number and direction of an endpoint, as in `bEndpointAddress` (USB 2.0, table 9-13).
public struct EndpointAddress: RawRepresentable, Hashable, Sendable {
    /// `bEndpointAddress`: bit 7 is the direction, set for IN; bits 3:0 are the number.
    public let rawValue: UInt8

    /// An address from `bEndpointAddress`, whose reserved bits 6:4 are dropped.
    public init(rawValue: UInt8) { self.rawValue = rawValue & 0x8f }

    /// The endpoint with a number of 0 to 15 in a direction.
    public init(_ number: UInt8, _ direction: Direction) {
        self.init(rawValue: (number & 0xf) | (direction == .in ? 0x80 : 0))
    }

    /// Endpoint 0, the default control endpoint, which has both directions.
    public static let control = EndpointAddress(rawValue: 0)

    /// The endpoint number, 0 to 15.
    public var number: UInt8 { rawValue & 0xf }

    /// The direction of the endpoint; that of endpoint 0 has no meaning.
    public var direction: Direction { rawValue & 0x80 != 0 ? .in : .out }
}
