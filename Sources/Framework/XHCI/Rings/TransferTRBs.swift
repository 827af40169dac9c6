// SPDX-License-Identifier: Apache-2.0

/// A TRB of a transfer ring, with the fields that most of its types share (xHCI 6.4.1).
struct TransferTRB {
    var trb: TRB

    init(_ trb: TRB) { self.trb = trb }

    /// The Data Buffer Pointer; with ``isImmediateData`` set, the data; in an Event Data TRB, the
    /// value that its event carries.
    var parameter: UInt64 { trb.parameter }
    /// TRB Transfer Length, bits 16:0 of the status.
    var length: Int { Int(trb.status[bits: 0...16]) }
    /// Interrupter Target, bits 31:22 of the status.
    var interrupter: Int { Int(trb.status[bits: 22...31]) }
    /// ISP, bit 2.
    var interruptOnShortPacket: Bool { trb.control[bit: 2] }
    /// CH, bit 4: the next TRB belongs to the same TD.
    var chain: Bool { trb.control[bit: 4] }
    /// IOC, bit 5.
    var interruptOnCompletion: Bool { trb.control[bit: 5] }
    /// IDT, bit 6.
    var isImmediateData: Bool { trb.control[bit: 6] }
    /// BEI, bit 9: the event that IOC requests raises no interrupt. Without IOC, BEI is ignored.
    var blockEventInterrupt: Bool { interruptOnCompletion && trb.control[bit: 9] }
    /// DIR, bit 16, of a Data Stage or Status Stage TRB.
    var direction: Bool { trb.control[bit: 16] }

    /// Frame ID, bits 30:20, of an Isoch TRB; `nil` if Start Isoch ASAP (SIA), bit 31, is set.
    var frameID: Int? { trb.control[bit: 31] ? nil : Int(trb.control[bits: 20...30]) }

    /// Whether the TRB moves data. A Setup Stage TRB does not: its data is the request itself.
    var hasData: Bool {
        trb.kind == .normal || trb.kind == .dataStage || trb.kind == .isochronous
    }
}

/// A Link TRB, which continues a ring in another segment (xHCI 6.4.4.1).
struct LinkTRB {
    var trb: TRB

    init?(_ trb: TRB) {
        guard trb.kind == .link else { return nil }
        self.trb = trb
    }

    /// Ring Segment Pointer.
    var target: UInt64 { trb.parameter & ~0xf }
    /// TC, bit 1.
    var toggleCycle: Bool { trb.control[bit: 1] }
}
