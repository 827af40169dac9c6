// SPDX-License-Identifier: Apache-2.0

internal import DMA

/// A place on a ring that this controller consumes: an address and the cycle state that a TRB there
/// must have to be ours (xHCI 4.9.2).
struct RingPosition: Equatable {
    var address: UInt64
    var cycle: Bool

    /// From a pointer whose bit 0 is the cycle state.
    init(pointer: UInt64) {
        address = pointer & ~0xf
        cycle = pointer[bit: 0]
    }

    /// With the cycle state in bit 0, as contexts hold it.
    var pointer: UInt64 { address | (cycle ? 1 : 0) }

    /// The TRB here, or `nil` if the driver has not handed it over.
    ///
    /// The control word is loaded once, before the others: a second look could find another TRB.
    func fetch(_ memory: GuestMemory) throws(DMAError) -> TRB? {
        let base = GuestAddress(address)
        let control = try memory.loadAcquiring(at: base + 12)
        guard control[bit: 0] == cycle else { return nil }
        return TRB(
            parameter: try memory.load(at: base), status: try memory.load(at: base + 8),
            control: control)
    }

    mutating func advance() { address &+= UInt64(TRB.size) }

    mutating func follow(_ link: LinkTRB) {
        address = link.segment
        if link.toggleCycle { cycle.toggle() }
    }
}
