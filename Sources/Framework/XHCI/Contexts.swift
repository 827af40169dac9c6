// SPDX-License-Identifier: Apache-2.0

/// The size of each context: HCCPARAMS1.CSZ is 0.
let contextSize = 32

/// A Slot Context (xHCI 6.2.2), a copy of what stands in memory.
struct SlotContext: BitwiseCopyable {
    var word0: UInt32 = 0
    var word1: UInt32 = 0
    var word2: UInt32 = 0
    var word3: UInt32 = 0
    private var reserved = (UInt32(0), UInt32(0), UInt32(0), UInt32(0))

    /// Route String, bits 19:0.
    var routeString: UInt32 { word0[bits: 0...19] }
    /// Speed, bits 23:20.
    var speed: UInt32 { word0[bits: 20...23] }
    /// Context Entries, bits 31:27: the last valid DCI.
    var contextEntries: Int {
        get { Int(word0[bits: 27...31]) }
        set { word0[bits: 27...31] = UInt32(newValue & 0x1f) }
    }
    /// Max Exit Latency, bits 15:0.
    var maxExitLatency: UInt32 {
        get { word1[bits: 0...15] }
        set { word1[bits: 0...15] = newValue }
    }
    /// Root Hub Port Number, bits 23:16, counted from 1.
    var rootHubPort: Int { Int(word1[bits: 16...23]) }
    /// Interrupter Target, bits 31:22.
    var interrupterTarget: UInt32 {
        get { word2[bits: 22...31] }
        set { word2[bits: 22...31] = newValue }
    }
    /// USB Device Address, bits 7:0.
    var deviceAddress: UInt32 {
        get { word3[bits: 0...7] }
        set { word3[bits: 0...7] = newValue }
    }
    /// Slot State, bits 31:27.
    var state: SlotState {
        get { SlotState(rawValue: UInt8(word3[bits: 27...31])) }
        set { word3[bits: 27...31] = UInt32(newValue.rawValue) }
    }
}

/// Slot states (xHCI 4.5.3), as they stand in the Slot Context; open, since memory holds them.
struct SlotState: RawRepresentable, Equatable {
    let rawValue: UInt8

    /// Disabled, or enabled: the context does not tell the two apart.
    static let disabledOrEnabled = SlotState(rawValue: 0)
    static let `default` = SlotState(rawValue: 1)
    static let addressed = SlotState(rawValue: 2)
    static let configured = SlotState(rawValue: 3)
}

/// An Endpoint Context (xHCI 6.2.3), a copy of what stands in memory.
struct EndpointContext: BitwiseCopyable {
    var word0: UInt32 = 0
    var word1: UInt32 = 0
    /// TR Dequeue Pointer with the Dequeue Cycle State in bit 0.
    var dequeue: UInt64 = 0
    var word4: UInt32 = 0
    private var reserved = (UInt32(0), UInt32(0), UInt32(0))

    /// Endpoint State, bits 2:0.
    var state: EndpointState {
        get { EndpointState(rawValue: UInt8(word0[bits: 0...2])) }
        set { word0[bits: 0...2] = UInt32(newValue.rawValue) }
    }
    /// Mult, bits 9:8.
    var mult: UInt32 { word0[bits: 8...9] }
    /// MaxPStreams, bits 14:10.
    var maxPrimaryStreams: UInt32 { word0[bits: 10...14] }
    /// Interval, bits 23:16: 2^n microframes.
    var interval: UInt32 { word0[bits: 16...23] }
    /// CErr, bits 2:1.
    var errorCount: UInt32 { word1[bits: 1...2] }
    /// EP Type, bits 5:3.
    var kind: EndpointKind { EndpointKind(rawValue: UInt8(word1[bits: 3...5])) }
    /// Max Burst Size, bits 15:8.
    var maxBurst: UInt32 { word1[bits: 8...15] }
    /// Max Packet Size, bits 31:16.
    var maxPacketSize: UInt32 {
        get { word1[bits: 16...31] }
        set { word1[bits: 16...31] = newValue }
    }
}

/// Endpoint states (xHCI 4.8.3), as they stand in the Endpoint Context; open, since memory holds
/// them.
struct EndpointState: RawRepresentable, Equatable {
    let rawValue: UInt8

    static let disabled = EndpointState(rawValue: 0)
    static let running = EndpointState(rawValue: 1)
    static let halted = EndpointState(rawValue: 2)
    static let stopped = EndpointState(rawValue: 3)
    static let error = EndpointState(rawValue: 4)
}

/// Endpoint types (xHCI table 6-9); open, because the guest writes them.
struct EndpointKind: RawRepresentable, Equatable {
    let rawValue: UInt8

    static let invalid = EndpointKind(rawValue: 0)
    static let isochOut = EndpointKind(rawValue: 1)
    static let bulkOut = EndpointKind(rawValue: 2)
    static let interruptOut = EndpointKind(rawValue: 3)
    static let control = EndpointKind(rawValue: 4)
    static let isochIn = EndpointKind(rawValue: 5)
    static let bulkIn = EndpointKind(rawValue: 6)
    static let interruptIn = EndpointKind(rawValue: 7)

    var isIsochronous: Bool { self == .isochOut || self == .isochIn }
    var isInterrupt: Bool { self == .interruptOut || self == .interruptIn }
    var isIn: Bool { rawValue >= EndpointKind.isochIn.rawValue }
}

/// The first two words of an Input Control Context (xHCI 6.2.5.1).
struct InputControlContext: BitwiseCopyable {
    /// Bit n drops the endpoint with DCI n.
    var drop: UInt32 = 0
    /// Bit n adds the endpoint with DCI n; bit 0 is the slot.
    var add: UInt32 = 0
}
