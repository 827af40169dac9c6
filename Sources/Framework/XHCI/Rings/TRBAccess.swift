// SPDX-License-Identifier: Apache-2.0

internal import DMA

/// Loads and stores of TRBs in guest memory, in the order that the cycle bit requires (xHCI 4.9.2).
extension GuestMemory {
    /// Loads a TRB if its cycle bit is `cycle`.
    ///
    /// The control word is loaded first, with acquire: if the producer has handed the TRB over, the
    /// other words are the TRB's. Each word is loaded once. In memory that only messages reach, the
    /// other words are loaded only if the cycle bit matches.
    ///
    /// - Throws: also for an address that is not a multiple of four, which no ring has.
    func loadTRB(at address: GuestAddress, cycle: Bool) throws(DMAError) -> TRB? {
        try requireWords(address)
        guard let mapped = mappedValue(TRB.self, at: address, writing: false) else {
            let control: UInt32 = try load(at: address + TRB.controlOffset)
            guard control[bit: 0] == cycle else { return nil }
            return TRB(
                parameter: try load(at: address), status: try load(at: address + TRB.statusOffset),
                control: control)
        }
        let control = mapped.loadAcquiring(at: TRB.controlOffset)
        let parameter = mapped.load(UInt64.self, at: 0)
        let status = mapped.load(UInt32.self, at: TRB.statusOffset)
        try mapped.checkIntact()
        guard control[bit: 0] == cycle else { return nil }
        return TRB(parameter: parameter, status: status, control: control)
    }

    /// Stores a TRB, its control word last, with release: a consumer that sees the new cycle bit
    /// also sees the other words and everything stored before.
    func storeTRB(_ trb: TRB, at address: GuestAddress) throws(DMAError) {
        try requireWords(address)
        guard let mapped = mappedValue(TRB.self, at: address, writing: true) else {
            try store(trb.parameter, at: address)
            try store(trb.status, at: address + TRB.statusOffset)
            try store(trb.control, at: address + TRB.controlOffset)
            return
        }
        mapped.store(trb.parameter, at: 0)
        mapped.store(trb.status, at: TRB.statusOffset)
        mapped.storeReleasing(trb.control, at: TRB.controlOffset)
        try mapped.checkIntact()
    }

    private func requireWords(_ address: GuestAddress) throws(DMAError) {
        guard address.rawValue & 3 == 0 else {
            throw DMAError(.unmapped, at: address, count: TRB.size)
        }
    }
}
