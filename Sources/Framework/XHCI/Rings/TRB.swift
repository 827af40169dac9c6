// SPDX-License-Identifier: Apache-2.0

/// A Transfer Request Block: the 16-byte entry of every ring (xHCI 4.11.1, 6.4).
///
/// ``TransferTRB``, ``LinkTRB`` and ``CommandTRB`` name the fields of TRBs that software writes;
/// the functions in EventTRBs make those that the controller writes.
struct TRB: BitwiseCopyable, Equatable {
    var parameter: UInt64 = 0
    var status: UInt32 = 0
    /// The word with the cycle bit, which hands the TRB over: stored last and loaded first.
    var control: UInt32 = 0

    /// Bytes of a TRB in guest memory.
    static let size = 16
    /// Byte offsets of the words in guest memory.
    static let statusOffset = 8
    static let controlOffset = 12

    /// C, bit 0: compared with the ring's cycle state, it says whether the producer or the consumer
    /// owns the TRB.
    var cycle: Bool {
        get { control[bit: 0] }
        set { control[bit: 0] = newValue }
    }

    /// TRB Type, bits 15:10.
    var kind: Kind {
        get { Kind(rawValue: UInt8(control[bits: 10...15])) }
        set { control[bits: 10...15] = UInt32(newValue.rawValue) }
    }

    /// A TRB Type (xHCI table 6-91). The guest writes it, so it is not an enum: any value can
    /// occur.
    struct Kind: RawRepresentable, Hashable {
        let rawValue: UInt8

        // Transfer rings.
        static let normal = Kind(rawValue: 1)
        static let setupStage = Kind(rawValue: 2)
        static let dataStage = Kind(rawValue: 3)
        static let statusStage = Kind(rawValue: 4)
        static let isochronous = Kind(rawValue: 5)
        static let link = Kind(rawValue: 6)
        static let eventData = Kind(rawValue: 7)
        static let noOp = Kind(rawValue: 8)

        // The command ring.
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

        // Event rings.
        static let transferEvent = Kind(rawValue: 32)
        static let commandCompletion = Kind(rawValue: 33)
        static let portStatusChange = Kind(rawValue: 34)
        static let hostController = Kind(rawValue: 37)
        static let microframeWrap = Kind(rawValue: 39)
    }
}

/// A position in a ring: the address of a TRB and the consumer's cycle state there.
struct RingPosition: Equatable {
    /// The layout of a TR Dequeue Pointer: the address in bits 63:4, the cycle state in bit 0.
    private(set) var rawValue: UInt64

    /// Makes a position from a TR Dequeue Pointer or Command Ring Pointer; bits 3:1 are dropped.
    init(rawValue: UInt64) { self.rawValue = rawValue & ~0xe }

    var address: UInt64 { rawValue & ~0xf }
    var cycle: Bool { rawValue[bit: 0] }

    /// The position of the next TRB in the same segment.
    var next: RingPosition {
        RingPosition(rawValue: rawValue &+ UInt64(TRB.size))
    }

    /// The position that a Link TRB at this position leads to.
    func following(_ link: LinkTRB) -> RingPosition {
        RingPosition(rawValue: link.target | (cycle != link.toggleCycle ? 1 : 0))
    }
}

/// A TRB and its position in the ring.
struct RingEntry {
    var trb: TRB
    var position: RingPosition
}
