// SPDX-License-Identifier: Apache-2.0

/// The eight bytes that begin a control transfer (USB 2.0, 9.3).
public struct SetupPacket: Hashable, Sendable {
    /// `bmRequestType`: direction, type and recipient.
    public var requestType: UInt8
    /// `bRequest`.
    public var request: UInt8
    /// `wValue`.
    public var value: UInt16
    /// `wIndex`.
    public var index: UInt16
    /// `wLength`: the bytes of the data stage.
    public var length: UInt16

    public init(
        requestType: UInt8, request: UInt8, value: UInt16, index: UInt16, length: UInt16
    ) {
        self.requestType = requestType
        self.request = request
        self.value = value
        self.index = index
        self.length = length
    }

    /// The packet in the order of the wire, least significant byte first, as it stands in a Setup
    /// Stage TRB.
    public init(wire: UInt64) {
        self.init(
            requestType: UInt8(truncatingIfNeeded: wire),
            request: UInt8(truncatingIfNeeded: wire >> 8),
            value: UInt16(truncatingIfNeeded: wire >> 16),
            index: UInt16(truncatingIfNeeded: wire >> 32),
            length: UInt16(truncatingIfNeeded: wire >> 48))
    }

    /// See ``init(wire:)``.
    public var wire: UInt64 {
        UInt64(requestType) | UInt64(request) << 8 | UInt64(value) << 16 | UInt64(index) << 32
            | UInt64(length) << 48
    }

    /// The direction of the data stage.
    public var direction: Direction { requestType & 0x80 != 0 ? .in : .out }

    /// Whose vocabulary the request is of: `bmRequestType` bits 6:5.
    public var kind: Kind { Kind(rawValue: requestType >> 5 & 3) }

    /// Who is addressed: `bmRequestType` bits 4:0.
    public var recipient: Recipient { Recipient(rawValue: requestType & 0x1f) }

    /// `bmRequestType` bits 6:5; open, because the guest writes it.
    public struct Kind: RawRepresentable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let standard = Kind(rawValue: 0)
        public static let `class` = Kind(rawValue: 1)
        public static let vendor = Kind(rawValue: 2)
    }

    /// `bmRequestType` bits 4:0; open, because the guest writes it.
    public struct Recipient: RawRepresentable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let device = Recipient(rawValue: 0)
        public static let interface = Recipient(rawValue: 1)
        public static let endpoint = Recipient(rawValue: 2)
        public static let other = Recipient(rawValue: 3)
    }
}
