// SPDX-License-Identifier: Apache-2.0

public import DMA
public import USB

/// A Slot Context (xHCI 6.2.2) as a driver reads and writes it.
public struct GuestSlotContext: Hashable, Sendable {
    public var words: [UInt32]

    public init(words: [UInt32] = [0, 0, 0, 0]) { self.words = words }

    public init(port: Int, speed: UInt32, contextEntries: Int, route: UInt32 = 0) {
        words = [
            route & 0xf_ffff | speed << 20 | UInt32(contextEntries) << 27, UInt32(port) << 16, 0, 0,
        ]
    }

    public var route: UInt32 { words[0] & 0xf_ffff }
    public var speed: UInt32 { words[0] >> 20 & 0xf }
    public var contextEntries: Int {
        get { Int(words[0] >> 27) }
        set { words[0] = words[0] & 0x07ff_ffff | UInt32(newValue & 0x1f) << 27 }
    }
    public var maxExitLatency: UInt32 {
        get { words[1] & 0xffff }
        set { words[1] = words[1] & 0xffff_0000 | newValue & 0xffff }
    }
    public var rootHubPort: Int { Int(words[1] >> 16 & 0xff) }
    public var interrupter: Int {
        get { Int(words[2] >> 22) }
        set { words[2] = words[2] & 0x3f_ffff | UInt32(newValue) << 22 }
    }
    public var deviceAddress: Int { Int(words[3] & 0xff) }
    public var state: State { State(rawValue: UInt8(words[3] >> 27)) }

    /// Slot State (xHCI table 6-7).
    public struct State: RawRepresentable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let disabledOrEnabled = State(rawValue: 0)
        public static let `default` = State(rawValue: 1)
        public static let addressed = State(rawValue: 2)
        public static let configured = State(rawValue: 3)
    }
}

/// An Endpoint Context (xHCI 6.2.3) as a driver reads and writes it.
public struct GuestEndpointContext: Hashable, Sendable {
    public var words: [UInt32]

    public init(words: [UInt32] = [0, 0, 0, 0, 0]) { self.words = words }

    public init(
        type: EndpointType, maxPacketSize: Int, dequeue: GuestAddress, cycle: Bool = true,
        interval: Int = 0, maxBurst: Int = 0
    ) {
        words = [
            UInt32(interval) << 16,
            3 << 1 | UInt32(type.rawValue) << 3 | UInt32(maxBurst) << 8
                | UInt32(maxPacketSize) << 16,
            UInt32(truncatingIfNeeded: dequeue.rawValue) & ~0xf | (cycle ? 1 : 0),
            UInt32(truncatingIfNeeded: dequeue.rawValue >> 32),
            8,
        ]
    }

    public var state: State { State(rawValue: UInt8(words[0] & 7)) }
    public var type: EndpointType { EndpointType(rawValue: UInt8(words[1] >> 3 & 7)) }
    public var maxPacketSize: Int { Int(words[1] >> 16) }
    public var dequeueCycle: Bool { words[2] & 1 != 0 }
    public var dequeuePointer: GuestAddress {
        GuestAddress(UInt64(words[2] & ~0xf) | UInt64(words[3]) << 32)
    }

    /// Endpoint State (xHCI table 6-8).
    public struct State: RawRepresentable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let disabled = State(rawValue: 0)
        public static let running = State(rawValue: 1)
        public static let halted = State(rawValue: 2)
        public static let stopped = State(rawValue: 3)
        public static let error = State(rawValue: 4)
    }

    /// Endpoint Type (xHCI table 6-9).
    public struct EndpointType: RawRepresentable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let isochronousOut = EndpointType(rawValue: 1)
        public static let bulkOut = EndpointType(rawValue: 2)
        public static let interruptOut = EndpointType(rawValue: 3)
        public static let control = EndpointType(rawValue: 4)
        public static let isochronousIn = EndpointType(rawValue: 5)
        public static let bulkIn = EndpointType(rawValue: 6)
        public static let interruptIn = EndpointType(rawValue: 7)
    }
}

extension EndpointAddress {
    /// The Device Context Index (xHCI 4.5.1).
    public var contextIndex: Int {
        number == 0 ? 1 : Int(number) * 2 + (direction == .in ? 1 : 0)
    }
}
