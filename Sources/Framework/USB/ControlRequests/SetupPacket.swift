// SPDX-License-Identifier: Apache-2.0

/// The Setup packet of a control transfer (USB 2.0, 9.3).
public struct SetupPacket: Hashable, Sendable {
    /// `bmRequestType`: ``direction``, ``kind`` and ``recipient``.
    public var requestType: UInt8
    /// `bRequest`.
    public var request: UInt8
    /// `wValue`.
    public var value: UInt16
    /// `wIndex`.
    public var index: UInt16
    /// `wLength`: the length of an OUT data stage in bytes, and the maximum of an IN data stage.
    public var length: UInt16

    /// A packet from its five fields.
    public init(
        requestType: UInt8, request: UInt8, value: UInt16, index: UInt16, length: UInt16
    ) {
        self.requestType = requestType
        self.request = request
        self.value = value
        self.index = index
        self.length = length
    }

    /// A packet from its eight bytes, of which the first is the least significant one, as in a
    /// Setup Stage TRB (xHCI 6.4.1.2.1).
    public init(wire: UInt64) {
        self.init(
            requestType: UInt8(truncatingIfNeeded: wire),
            request: UInt8(truncatingIfNeeded: wire >> 8),
            value: UInt16(truncatingIfNeeded: wire >> 16),
            index: UInt16(truncatingIfNeeded: wire >> 32),
            length: UInt16(truncatingIfNeeded: wire >> 48))
    }

    /// The packet's eight bytes, of which the first is the least significant one.
    public var wire: UInt64 {
        UInt64(requestType) | UInt64(request) << 8 | UInt64(value) << 16 | UInt64(index) << 32
            | UInt64(length) << 48
    }

    /// The direction of the data stage: `bmRequestType` bit 7.
    public var direction: Direction { requestType & 0x80 != 0 ? .in : .out }

    /// The specification that defines the request: `bmRequestType` bits 6:5.
    public var kind: Kind { Kind(rawValue: requestType >> 5 & 3) }

    /// The part of the device that the request is for: `bmRequestType` bits 4:0.
    public var recipient: Recipient { Recipient(rawValue: requestType & 0x1f) }

    /// The type in `bmRequestType`, bits 6:5 (USB 2.0, table 9-2).
    ///
    /// A guest may send any value, so values that are not among the constants are valid.
    public struct Kind: RawRepresentable, Hashable, Sendable {
        /// The two bits, shifted to the right.
        public let rawValue: UInt8

        /// The type with this value.
        public init(rawValue: UInt8) { self.rawValue = rawValue }

        /// A request of USB itself; see ``SetupPacket/standardRequest``.
        public static let standard = Kind(rawValue: 0)
        /// A request of the class of the device or interface.
        public static let `class` = Kind(rawValue: 1)
        /// A request of the vendor.
        public static let vendor = Kind(rawValue: 2)
    }

    /// The recipient in `bmRequestType`, bits 4:0 (USB 2.0, table 9-2).
    ///
    /// A guest may send any value, so values that are not among the constants are valid.
    public struct Recipient: RawRepresentable, Hashable, Sendable {
        /// The five bits.
        public let rawValue: UInt8

        /// The recipient with this value.
        public init(rawValue: UInt8) { self.rawValue = rawValue }

        /// The device.
        public static let device = Recipient(rawValue: 0)
        /// The interface whose number is in the low byte of `wIndex`.
        public static let interface = Recipient(rawValue: 1)
        /// The endpoint whose address is in `wIndex`.
        public static let endpoint = Recipient(rawValue: 2)
        /// Something else.
        public static let other = Recipient(rawValue: 3)
    }
}
