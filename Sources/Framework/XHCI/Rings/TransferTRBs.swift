// SPDX-License-Identifier: Apache-2.0

/// The bits that all TRBs of a transfer ring have in common (xHCI 6.4.1).
struct TransferTRB {
    var trb: TRB

    init(_ trb: TRB) { self.trb = trb }

    /// Data Buffer Pointer, or the data themselves where ``isImmediateData`` is set; for an Event
    /// Data TRB the value that its event carries.
    var parameter: UInt64 { trb.parameter }
    /// TRB Transfer Length, bits 16:0 of the status.
    var length: Int { Int(trb.status[bits: 0...16]) }
    /// Interrupter Target, bits 31:22 of the status.
    var interrupter: Int { Int(trb.status[bits: 22...31]) }
    /// ISP, bit 2.
    var interruptOnShortPacket: Bool { trb.control[bit: 2] }
    /// CH, bit 4: the next TRB belongs to the same transfer descriptor.
    var chain: Bool { trb.control[bit: 4] }
    /// IOC, bit 5.
    var interruptOnCompletion: Bool { trb.control[bit: 5] }
    /// IDT, bit 6.
    var isImmediateData: Bool { trb.control[bit: 6] }
    /// BEI, bit 9: the event that IOC asks for, and no other, asserts no interrupt.
    var blockEventInterrupt: Bool { interruptOnCompletion && trb.control[bit: 9] }
    /// DIR, bit 16, of a Data Stage or Status Stage TRB.
    var direction: Bool { trb.control[bit: 16] }

    /// Frame ID, bits 30:20, of an Isoch TRB; `nil` where SIA, bit 31, says to start as soon as
    /// possible.
    var frameID: Int? { trb.control[bit: 31] ? nil : Int(trb.control[bits: 20...30]) }

    /// Whether the TRB stands for bytes on the bus.
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
