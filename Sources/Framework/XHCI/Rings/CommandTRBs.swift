// SPDX-License-Identifier: Apache-2.0

/// The bits of the TRBs of the command ring (xHCI 6.4.3). Which of them count depends on the type.
struct CommandTRB {
    var trb: TRB

    init(_ trb: TRB) { self.trb = trb }

    /// Slot ID, bits 31:24.
    var slot: Int { Int(trb.control[bits: 24...31]) }
    /// Endpoint ID, bits 20:16: a Device Context Index.
    var endpoint: Int { Int(trb.control[bits: 16...20]) }
    /// BSR, DC or TSP, bit 9: what it means is named where it is read.
    var flag: Bool { trb.control[bit: 9] }
    /// Input Context Pointer.
    var inputContext: UInt64 { trb.parameter & ~0xf }
    /// Stream ID of Set TR Dequeue Pointer, bits 31:16 of the status.
    var stream: Int { Int(trb.status[bits: 16...31]) }
    /// New TR Dequeue Pointer with its cycle state.
    var dequeuePointer: RingPosition { RingPosition(rawValue: trb.parameter) }
    /// Dev Speed of Get Port Bandwidth, bits 19:16.
    var speed: UInt8 { UInt8(trb.control[bits: 16...19]) }
    /// Port Bandwidth Context Pointer.
    var bandwidthContext: UInt64 { trb.parameter & ~0xf }
}
