// SPDX-License-Identifier: Apache-2.0

/// A Slot Context (xHCI 6.2.2), loaded and stored whole.
struct SlotContext: BitwiseCopyable {
    /// Bytes of every context, because CSZ is 0.
    static let size = 32

    var route: UInt32 = 0
    var topology: UInt32 = 0
    var translation: UInt32 = 0
    var address: UInt32 = 0
    private var reserved: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)

    /// Route String, bits 19:0: the ports of the hubs between the root hub and the device.
    var routeString: UInt32 { route[bits: 0...19] }
    /// Context Entries, bits 31:27: the DCI of the last valid Endpoint Context.
    var contextEntries: Int {
        get { Int(route[bits: 27...31]) }
        set { route[bits: 27...31] = UInt32(newValue) }
    }
    /// Max Exit Latency, bits 15:0.
    var maxExitLatency: UInt32 {
        get { topology[bits: 0...15] }
        set { topology[bits: 0...15] = newValue }
    }
    /// Root Hub Port Number, bits 23:16, from 1.
    var rootHubPort: Int { Int(topology[bits: 16...23]) }
    /// Interrupter Target, bits 31:22.
    var interrupter: Int {
        get { Int(translation[bits: 22...31]) }
        set { translation[bits: 22...31] = UInt32(newValue) }
    }
    /// USB Device Address, bits 7:0.
    var deviceAddress: UInt32 {
        get { address[bits: 0...7] }
        set { address[bits: 0...7] = newValue }
    }
    /// Slot State, bits 31:27.
    var state: SlotState {
        get { SlotState(rawValue: UInt8(address[bits: 27...31])) }
        set { address[bits: 27...31] = UInt32(newValue.rawValue) }
    }
}

/// A Slot State (xHCI 4.5.3). Disabled and Enabled have the same value.
struct SlotState: RawRepresentable, Equatable {
    let rawValue: UInt8
    static let enabled = SlotState(rawValue: 0)
    static let `default` = SlotState(rawValue: 1)
    static let addressed = SlotState(rawValue: 2)
    static let configured = SlotState(rawValue: 3)
}

/// An Endpoint Context (xHCI 6.2.3), loaded and stored whole.
struct EndpointContext: BitwiseCopyable {
    var info: UInt32 = 0
    var characteristics: UInt32 = 0
    var dequeuePointer: UInt64 = 0
    var averages: UInt32 = 0
    private var reserved: (UInt32, UInt32, UInt32) = (0, 0, 0)

    /// The largest valid Interval of any endpoint: that of a full-speed isochronous one (xHCI table
    /// 6-12).
    static let longestInterval: UInt32 = 18

    /// Byte offsets of EP State and TR Dequeue Pointer.
    static let stateOffset: UInt64 = 0
    static let dequeuePointerOffset: UInt64 = 8

    /// EP State, bits 2:0.
    var state: EndpointState {
        get { EndpointState(rawValue: UInt8(info[bits: 0...2])) }
        set { info[bits: 0...2] = UInt32(newValue.rawValue) }
    }
    /// MaxPStreams, bits 14:10.
    var maxPrimaryStreams: UInt32 { info[bits: 10...14] }
    /// LSA, bit 15: the Primary Stream Array is linear, without Secondary Stream Arrays.
    var hasLinearStreams: Bool { info[bit: 15] }
    /// Interval, bits 23:16: the service interval is 2^n × 125 µs.
    var interval: UInt32 { info[bits: 16...23] }
    /// The bytes that may be moved in one service interval (xHCI 4.14.2): Max Packet Size × (Max
    /// Burst Size + 1) × (Mult + 1). Max Burst Size is bits 15:8 of the second doubleword, Mult
    /// bits 9:8 of the first.
    var maxServicePayload: Int {
        Int(maxPacketSize) * (Int(characteristics[bits: 8...15]) + 1) * (Int(info[bits: 8...9]) + 1)
    }
    /// EP Type, bits 5:3.
    var kind: EndpointKind { EndpointKind(rawValue: UInt8(characteristics[bits: 3...5])) }
    /// Max Packet Size, bits 31:16.
    var maxPacketSize: UInt32 {
        get { characteristics[bits: 16...31] }
        set { characteristics[bits: 16...31] = newValue }
    }
}

/// An EP State (xHCI 4.8.3).
struct EndpointState: RawRepresentable, Equatable {
    let rawValue: UInt8
    static let disabled = EndpointState(rawValue: 0)
    static let running = EndpointState(rawValue: 1)
    static let halted = EndpointState(rawValue: 2)
    static let stopped = EndpointState(rawValue: 3)
    static let error = EndpointState(rawValue: 4)
}

/// An EP Type (xHCI table 6-9). The guest writes it, so it is not an enum: any value can occur.
struct EndpointKind: RawRepresentable, Equatable {
    let rawValue: UInt8
    static let isochronousOut = EndpointKind(rawValue: 1)
    static let bulkOut = EndpointKind(rawValue: 2)
    static let interruptOut = EndpointKind(rawValue: 3)
    static let control = EndpointKind(rawValue: 4)
    static let isochronousIn = EndpointKind(rawValue: 5)
    static let bulkIn = EndpointKind(rawValue: 6)
    static let interruptIn = EndpointKind(rawValue: 7)

    var isPeriodic: Bool { isInterrupt || isIsochronous }
    var isBulk: Bool { self == .bulkIn || self == .bulkOut }
    var isInterrupt: Bool { self == .interruptIn || self == .interruptOut }
    var isIsochronous: Bool { self == .isochronousIn || self == .isochronousOut }

    /// Whether an endpoint of this type may have a Device Context Index (DCI): even ones are OUT,
    /// odd ones IN or control.
    func fits(index: Int) -> Bool {
        switch self {
        case .isochronousOut, .bulkOut, .interruptOut: index % 2 == 0
        case .isochronousIn, .bulkIn, .interruptIn, .control: index % 2 == 1
        default: false
        }
    }
}

/// An Input Control Context (xHCI 6.2.5.1).
struct InputControlContext: BitwiseCopyable {
    /// Drop Context flags, D2...D31.
    var drop: UInt32 = 0
    /// Add Context flags, A0...A31.
    var add: UInt32 = 0
}

/// An Input Context in guest memory (xHCI 6.2.5), which begins with the Input Control Context.
struct InputContext {
    let address: UInt64

    /// The address of the context with a Device Context Index; index 0 is the Slot Context.
    func address(of index: Int) -> UInt64 {
        address &+ UInt64((index + 1) * SlotContext.size)
    }
}
