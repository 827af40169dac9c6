// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

/// Stream doorbells that were rung and not handled yet (xHCI 4.7, 5.6): each stream once, in order.
struct PendingStreamDoorbells {
    struct Doorbell: Hashable {
        let slot: Int
        let endpoint: Int
        let stream: Int
    }

    private var doorbells: Deque<Doorbell> = []
    private var known: Set<Doorbell> = []

    var isEmpty: Bool { doorbells.isEmpty }

    /// Adds a doorbell; those beyond ``XHCILimits/streamDoorbells`` are dropped.
    mutating func insert(_ doorbell: Doorbell) {
        guard doorbells.count < XHCILimits.streamDoorbells, known.insert(doorbell).inserted
        else { return }
        doorbells.append(doorbell)
    }

    mutating func popFirst() -> Doorbell? {
        guard let doorbell = doorbells.popFirst() else { return nil }
        known.remove(doorbell)
        return doorbell
    }
}
