// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

/// Doorbells rung for streams and not handled yet (xHCI 4.7, 5.6): each stream once, in order.
struct PendingStreamDoorbells {
    struct Ring: Hashable {
        let slot: Int
        let endpoint: Int
        let stream: Int
    }

    private var rings: Deque<Ring> = []
    private var known: Set<Ring> = []

    var isEmpty: Bool { rings.isEmpty }

    /// Adds a doorbell; those beyond ``XHCILimits/streamDoorbells`` are dropped.
    mutating func insert(_ ring: Ring) {
        guard rings.count < XHCILimits.streamDoorbells, known.insert(ring).inserted else { return }
        rings.append(ring)
    }

    mutating func popFirst() -> Ring? {
        guard let ring = rings.popFirst() else { return nil }
        known.remove(ring)
        return ring
    }
}
