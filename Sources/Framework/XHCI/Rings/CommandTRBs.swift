// SPDX-License-Identifier: Apache-2.0

/// A TRB of the command ring, with the fields of all its types (xHCI 6.4.3). Each field is valid
/// only for the commands that have it.
struct CommandTRB {
    var trb: TRB

    init(_ trb: TRB) { self.trb = trb }

    /// Slot ID, bits 31:24.
    var slot: Int { Int(trb.control[bits: 24...31]) }
    /// Endpoint ID, bits 20:16: a Device Context Index.
    var endpoint: Int { Int(trb.control[bits: 16...20]) }
    /// BSR, bit 9 of Address Device: no SET_ADDRESS request is sent to the device.
    var blockSetAddressRequest: Bool { trb.control[bit: 9] }
    /// DC, bit 9 of Configure Endpoint: the slot returns to the Addressed state.
    var deconfigure: Bool { trb.control[bit: 9] }
    /// TSP, bit 9 of Reset Endpoint: the transfer that failed is executed again.
    var transferStatePreserve: Bool { trb.control[bit: 9] }
    /// Input Context Pointer.
    var inputContext: UInt64 { trb.parameter & ~0xf }
    /// Stream ID, bits 31:16 of the status word of Set TR Dequeue Pointer.
    var stream: Int { Int(trb.status[bits: 16...31]) }
    /// New TR Dequeue Pointer with its cycle state (DCS).
    var dequeuePointer: RingPosition { RingPosition(rawValue: trb.parameter) }
    /// Dev Speed, bits 19:16 of Get Port Bandwidth.
    var speed: UInt8 { UInt8(trb.control[bits: 16...19]) }
    /// Port Bandwidth Context Pointer.
    var bandwidthContext: UInt64 { trb.parameter & ~0xf }
}
