// SPDX-License-Identifier: Apache-2.0

/// A set of endpoints by slot and Device Context Index.
struct EndpointSet {
    /// By slot, one bit for each Device Context Index.
    private var endpoints: [UInt32]
    /// One bit for each slot that has endpoints in the set.
    private var slots: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)

    init(slots: Int) { endpoints = Array(repeating: 0, count: slots + 1) }

    var isEmpty: Bool { firstSlot(from: 0) == nil }

    /// Adds an endpoint; slots and endpoints that do not exist are ignored.
    mutating func insert(slot: Int, endpoint: Int) {
        guard slot > 0, slot < endpoints.count, (1...31).contains(endpoint) else { return }
        endpoints[slot][bit: endpoint] = true
        withWord(of: slot) { $0[bit: slot & 63] = true }
    }

    /// Removes an endpoint.
    mutating func remove(slot: Int, endpoint: Int) {
        guard slot > 0, slot < endpoints.count, (1...31).contains(endpoint) else { return }
        endpoints[slot][bit: endpoint] = false
        if endpoints[slot] == 0 { remove(slot: slot) }
    }

    /// All endpoints of the first slot from `start` on that has any, one bit for each.
    func first(from start: Int) -> (slot: Int, endpoints: UInt32)? {
        firstSlot(from: start).map { ($0, endpoints[$0]) }
    }

    /// Removes and returns all endpoints of the first slot that has any, one bit for each.
    mutating func popFirst() -> (slot: Int, endpoints: UInt32)? {
        firstSlot(from: 0).map { pop($0) }
    }

    /// Removes and returns endpoints of the first slot at or after a cursor that has any, one bit
    /// for each; of the cursor's own slot only those from its endpoint on. Wraps around at the end.
    mutating func popFirst(
        from start: (slot: Int, endpoint: Int)
    ) -> (slot: Int, endpoints: UInt32)? {
        guard let slot = firstSlot(from: start.slot) else { return popFirst() }
        guard slot == start.slot, start.endpoint > 0 else { return pop(slot) }
        let result = endpoints[slot] & (~0 << UInt32(start.endpoint))
        guard result != 0 else { return popFirst(from: (slot + 1, 0)) }
        let rest = endpoints[slot] & ~result
        remove(slot: slot)
        if rest != 0 {
            endpoints[slot] = rest
            withWord(of: slot) { $0[bit: slot & 63] = true }
        }
        return (slot, result)
    }

    private mutating func pop(_ slot: Int) -> (slot: Int, endpoints: UInt32) {
        let result = endpoints[slot]
        remove(slot: slot)
        return (slot, result)
    }

    /// Removes all endpoints of a slot.
    mutating func remove(slot: Int) {
        guard slot > 0, slot < endpoints.count else { return }
        endpoints[slot] = 0
        withWord(of: slot) { $0[bit: slot & 63] = false }
    }

    private func firstSlot(from start: Int) -> Int? {
        for index in min(start >> 6, 4)..<4 {
            var word = self.word(index)
            if index == start >> 6 { word &= ~0 << UInt64(start & 63) }
            if word != 0 { return index << 6 + word.trailingZeroBitCount }
        }
        return nil
    }

    private func word(_ index: Int) -> UInt64 {
        switch index {
        case 0: slots.0
        case 1: slots.1
        case 2: slots.2
        default: slots.3
        }
    }

    private mutating func withWord(of slot: Int, _ body: (inout UInt64) -> Void) {
        switch slot >> 6 {
        case 0: body(&slots.0)
        case 1: body(&slots.1)
        case 2: body(&slots.2)
        default: body(&slots.3)
        }
    }
}
