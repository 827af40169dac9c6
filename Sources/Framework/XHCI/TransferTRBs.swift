// SPDX-License-Identifier: Apache-2.0

/// What all TRBs of a transfer ring share (xHCI 6.4.1).
///
/// Fields keep their places over the types, so one view serves Normal, Data, Status, Isoch, No Op
/// and Event Data TRBs; a field that a type lacks is reserved there and not looked at.
struct TransferTRB {
    let trb: TRB

    /// Data Buffer Pointer, or the data itself if ``immediateData`` is set.
    var buffer: UInt64 { trb.parameter }
    /// TRB Transfer Length, status bits 16:0.
    var length: Int { Int(trb.status[bits: 0...16]) }
    /// Interrupter Target, status bits 31:22.
    var interrupterTarget: Int { Int(trb.status[bits: 22...31]) }
    /// ISP, bit 2.
    var interruptOnShortPacket: Bool { trb.control[bit: 2] }
    /// CH, bit 4.
    var chain: Bool { trb.control[bit: 4] }
    /// IOC, bit 5.
    var interruptOnCompletion: Bool { trb.control[bit: 5] }
    /// IDT, bit 6.
    var immediateData: Bool { trb.control[bit: 6] }
    /// BEI, bit 9.
    var blockEventInterrupt: Bool { trb.control[bit: 9] }
    /// DIR of Data and Status Stage TRBs, bit 16.
    var isIn: Bool { trb.control[bit: 16] }

    /// Whether the TRB moves bytes.
    var movesData: Bool { trb.kind == .normal || trb.kind == .dataStage || trb.kind == .isoch }
}
