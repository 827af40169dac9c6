// SPDX-License-Identifier: Apache-2.0

/// The fields of command TRBs (xHCI 6.4.3), which keep their places over the types.
struct CommandTRB {
    let trb: TRB

    /// Slot ID, bits 31:24.
    var slot: Int { Int(trb.control[bits: 24...31]) }
    /// Endpoint ID (a DCI), bits 20:16.
    var endpoint: Int { Int(trb.control[bits: 16...20]) }
    /// Input Context Pointer; the low four bits are reserved.
    var inputContext: UInt64 { trb.parameter & ~0xf }
    /// BSR of Address Device and DC of Configure Endpoint share bit 9 with TSP of Reset Endpoint.
    var blockSetAddress: Bool { trb.control[bit: 9] }
    var deconfigure: Bool { trb.control[bit: 9] }
    var transferStatePreserve: Bool { trb.control[bit: 9] }
    /// SP of Stop Endpoint, bit 23.
    var suspend: Bool { trb.control[bit: 23] }
    /// New TR Dequeue Pointer.
    var dequeuePointer: UInt64 { trb.parameter & ~0xf }
    /// DCS, parameter bit 0.
    var dequeueCycleState: Bool { trb.parameter[bit: 0] }
    /// Stream ID, status bits 31:16.
    var stream: Int { Int(trb.status[bits: 16...31]) }
    /// Port Bandwidth Context Pointer.
    var portBandwidthContext: UInt64 { trb.parameter & ~0xf }
}
