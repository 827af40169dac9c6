// SPDX-License-Identifier: Apache-2.0

/// A Transfer Request Block: the 16 bytes that rings are made of (xHCI 4.11.1, 6.4).
///
/// It was copied from the guest's memory, which may have changed since; the typed views around it
/// interpret this copy and nothing else.
struct TRB: BitwiseCopyable, Equatable {
    var parameter: UInt64 = 0
    var status: UInt32 = 0
    var control: UInt32 = 0

    static let size = 16

    /// C, bit 0.
    var cycle: Bool {
        get { control[bit: 0] }
        set { control[bit: 0] = newValue }
    }

    /// TRB Type, bits 15:10.
    var kind: Kind {
        get { Kind(rawValue: UInt8(control[bits: 10...15])) }
        set { control[bits: 10...15] = UInt32(newValue.rawValue) }
    }

    /// TRB types (xHCI table 6-91); open, because the guest writes them.
    struct Kind: RawRepresentable, Hashable {
        let rawValue: UInt8

        static let normal = Kind(rawValue: 1)
        static let setupStage = Kind(rawValue: 2)
        static let dataStage = Kind(rawValue: 3)
        static let statusStage = Kind(rawValue: 4)
        static let isoch = Kind(rawValue: 5)
        static let link = Kind(rawValue: 6)
        static let eventData = Kind(rawValue: 7)
        static let noOp = Kind(rawValue: 8)

        static let enableSlot = Kind(rawValue: 9)
        static let disableSlot = Kind(rawValue: 10)
        static let addressDevice = Kind(rawValue: 11)
        static let configureEndpoint = Kind(rawValue: 12)
        static let evaluateContext = Kind(rawValue: 13)
        static let resetEndpoint = Kind(rawValue: 14)
        static let stopEndpoint = Kind(rawValue: 15)
        static let setTRDequeuePointer = Kind(rawValue: 16)
        static let resetDevice = Kind(rawValue: 17)
        static let forceEvent = Kind(rawValue: 18)
        static let negotiateBandwidth = Kind(rawValue: 19)
        static let setLatencyTolerance = Kind(rawValue: 20)
        static let getPortBandwidth = Kind(rawValue: 21)
        static let forceHeader = Kind(rawValue: 22)
        static let noOpCommand = Kind(rawValue: 23)
        static let getExtendedProperty = Kind(rawValue: 24)
        static let setExtendedProperty = Kind(rawValue: 25)

        static let transferEvent = Kind(rawValue: 32)
        static let commandCompletionEvent = Kind(rawValue: 33)
        static let portStatusChangeEvent = Kind(rawValue: 34)
        static let hostControllerEvent = Kind(rawValue: 37)
        static let mfindexWrapEvent = Kind(rawValue: 39)
    }
}

/// A Link TRB, on any ring (xHCI 6.4.4.1).
struct LinkTRB {
    let trb: TRB

    /// Ring Segment Pointer; its low four bits are reserved.
    var segment: UInt64 { trb.parameter & ~0xf }
    /// TC, bit 1.
    var toggleCycle: Bool { trb.control[bit: 1] }
    /// CH, bit 4.
    var chain: Bool { trb.control[bit: 4] }
    /// IOC, bit 5.
    var interruptOnCompletion: Bool { trb.control[bit: 5] }
}
