// SPDX-License-Identifier: Apache-2.0

/// An endpoint descriptor, at SuperSpeed with its companion (USB 2.0, 9.6.6; USB 3.2, 9.6.6 and
/// 9.6.7).
public struct EndpointDescriptor: Hashable, Sendable {
    /// Offsets of fields, for ``RawDescriptor``.
    public enum Field {
        /// `bEndpointAddress`.
        public static let address = 2
        /// `bmAttributes`, whose bits 1:0 are the ``TransferType``.
        public static let attributes = 3
        /// `wMaxPacketSize`, two bytes.
        public static let maxPacketSize = 4
        /// `bInterval`.
        public static let interval = 6
    }

    /// The transfer type of an endpoint: `bmAttributes` bits 1:0.
    public enum TransferType: UInt8, Sendable {
        /// Control, as endpoint 0.
        case control = 0
        /// Isochronous: a fixed rate, no handshake.
        case isochronous = 1
        /// Bulk: any time, any amount.
        case bulk = 2
        /// Interrupt: small, polled at an interval.
        case interrupt = 3

        /// The transfer type in a `bmAttributes` byte, of which the other bits are ignored.
        public init(attributes: UInt8) {
            switch attributes & 3 {
            case 0: self = .control
            case 1: self = .isochronous
            case 2: self = .bulk
            default: self = .interrupt
            }
        }
    }

    /// The length of the descriptor in bytes, without those that follow it.
    static let size = 7

    /// `bEndpointAddress`.
    public var address: EndpointAddress
    /// `bmAttributes` bits 1:0; the other bits are 0.
    public var transferType: TransferType
    /// `wMaxPacketSize`: the bytes of a packet in bits 10:0, and at high speed the additional
    /// transactions of a microframe in bits 12:11.
    public var maxPacketSize: UInt16
    /// `bInterval` of a periodic endpoint.
    ///
    /// An interrupt endpoint at low or full speed: the interval in frames (1 ms), from 1. Others:
    /// the interval is 2^(n-1) frames at full speed, and 2^(n-1) microframes (125 µs) above.
    public var interval: UInt8
    /// The companion, which every endpoint has at SuperSpeed and none at other speeds.
    public var companion: SuperSpeedCompanion
    /// Whole descriptors of the interface's class, which go behind this one and its companion.
    public var classDescriptors: [UInt8]

    /// An endpoint.
    public init(
        _ address: EndpointAddress, _ transferType: TransferType, maxPacketSize: UInt16,
        interval: UInt8 = 0, companion: SuperSpeedCompanion = .init(),
        classDescriptors: [UInt8] = []
    ) {
        self.address = address
        self.transferType = transferType
        self.maxPacketSize = maxPacketSize
        self.interval = interval
        self.companion = companion
        self.classDescriptors = classDescriptors
    }
}

extension EndpointDescriptor {
    /// The fields of a descriptor, without a companion; `nil` if it is too short.
    init?(_ descriptor: RawDescriptor) {
        guard descriptor.bytes.count >= Self.size else { return nil }
        self.init(
            EndpointAddress(rawValue: descriptor.bytes[Field.address]),
            TransferType(attributes: descriptor.bytes[Field.attributes]),
            maxPacketSize: descriptor.word(at: Field.maxPacketSize),
            interval: descriptor.bytes[Field.interval])
    }

    /// The descriptor, at SuperSpeed its companion, and the class descriptors.
    func bytes(superSpeed: Bool) -> [UInt8] {
        let endpoint = DescriptorBuilder.bytes(of: .endpoint) {
            $0.append(address.rawValue)
            $0.append(transferType.rawValue)
            $0.append(maxPacketSize)
            $0.append(interval)
        }
        return endpoint + (superSpeed ? companion.bytes : []) + classDescriptors
    }
}

/// The SuperSpeed endpoint companion descriptor (USB 3.2, 9.6.7).
public struct SuperSpeedCompanion: Hashable, Sendable {
    /// Offsets of fields, for ``RawDescriptor``.
    public enum Field {
        /// `bMaxBurst`, the packets in a burst minus one.
        public static let burst = 2
        /// `bmAttributes`.
        public static let attributes = 3
        /// `wBytesPerInterval`, two bytes.
        public static let bytesPerInterval = 4
    }

    /// `bmAttributes` bits 4:0 of a bulk endpoint: MaxStreams.
    public static let maxStreamsMask: UInt8 = 0x1f

    /// Bytes of the descriptor.
    static let size = 6

    /// Packets in a burst, 1 to 16: `bMaxBurst` plus one.
    public var burst: Int
    /// `bmAttributes`: MaxStreams of a bulk endpoint, the multiplier minus one of an isochronous
    /// one.
    public var attributes: UInt8
    /// `wBytesPerInterval`: bytes that a periodic endpoint moves in a service interval.
    public var bytesPerInterval: UInt16

    /// A companion; by default that of an endpoint without bursts and streams.
    ///
    /// - Precondition: `burst` is 1 to 16.
    public init(burst: Int = 1, attributes: UInt8 = 0, bytesPerInterval: UInt16 = 0) {
        precondition((1...16).contains(burst), "a burst has 1 to 16 packets, not \(burst)")
        self.burst = burst
        self.attributes = attributes
        self.bytesPerInterval = bytesPerInterval
    }

    /// MaxStreams of a bulk endpoint: it has 2^n streams, or none if this is 0.
    ///
    /// A device may claim up to 31, although the specification ends at 16.
    public var maxStreams: UInt8 { attributes & Self.maxStreamsMask }
}

extension SuperSpeedCompanion {
    /// The fields of a descriptor; `nil` if it is too short.
    ///
    /// A burst of more than 16 packets becomes one of 16.
    init?(_ descriptor: RawDescriptor) {
        guard descriptor.bytes.count >= Self.size else { return nil }
        self.init(
            burst: min(Int(descriptor.bytes[Field.burst]), 15) + 1,
            attributes: descriptor.bytes[Field.attributes],
            bytesPerInterval: descriptor.word(at: Field.bytesPerInterval))
    }

    /// The six bytes of the descriptor.
    var bytes: [UInt8] {
        DescriptorBuilder.bytes(of: .superSpeedEndpointCompanion) {
            $0.append(UInt8(burst - 1))
            $0.append(attributes)
            $0.append(bytesPerInterval)
        }
    }
}
