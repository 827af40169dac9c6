// SPDX-License-Identifier: Apache-2.0

internal import DMA

/// The producer's side of an event ring: where the next event goes (xHCI 4.9.4).
struct EventRing {
    private struct Segment {
        let start: UInt64
        let count: Int
    }

    private struct Place: Equatable {
        var segment = 0
        var index = 0
    }

    private var segments: [Segment] = []
    private var place = Place()
    /// PCS.
    private var cycle = true
    /// An Event Ring Full Error was posted and no event may follow until the driver moves on.
    private(set) var isFull = false

    /// A ring of no segments, which takes no event.
    init() {}

    /// Reads the segment table (xHCI 6.5).
    init(table: UInt64, count: Int, memory: GuestMemory) throws(DMAError) {
        segments.reserveCapacity(count)
        for index in 0..<count {
            let entry = GuestAddress(table) + index * 16
            let start = try memory.load(UInt64.self, at: entry)
            let size = try memory.load(UInt32.self, at: entry + 8)
            // An empty segment would make the next place depend on how many follow it.
            guard size & 0xffff > 0 else { continue }
            segments.append(Segment(start: start & ~0x3f, count: Int(size & 0xffff)))
        }
    }

    var exists: Bool { !segments.isEmpty }

    /// The address of the next event (EREP).
    var enqueuePointer: UInt64 { address(of: place) }

    /// Whether an event finds room before `dequeue` with one place left for telling that it does
    /// not. Two places stay free, so a full ring can be told from an empty one.
    func hasRoom(dequeue: UInt64) -> Bool {
        exists && address(of: successor(successor(place))) != dequeue
            && address(of: successor(place)) != dequeue
    }

    /// Whether the place for Event Ring Full Error is free.
    func hasRoomForFullError(dequeue: UInt64) -> Bool {
        exists && address(of: successor(place)) != dequeue
    }

    /// Stores an event and moves on; the control word last, since its cycle bit publishes the rest.
    mutating func post(_ event: TRB, memory: GuestMemory) throws(DMAError) {
        let target = GuestAddress(enqueuePointer)
        var event = event
        event.cycle = cycle
        let next = successor(place)
        if next == Place() { cycle.toggle() }
        place = next
        try memory.store(event.parameter, at: target)
        try memory.store(event.status, at: target + 8)
        try memory.storeReleasing(event.control, at: target + 12)
    }

    mutating func setFull(_ full: Bool) { isFull = full }

    private func address(of place: Place) -> UInt64 {
        guard segments.indices.contains(place.segment) else { return 0 }
        return segments[place.segment].start &+ UInt64(place.index * TRB.size)
    }

    private func successor(_ place: Place) -> Place {
        if place.index + 1 < segments[place.segment].count {
            return Place(segment: place.segment, index: place.index + 1)
        }
        let segment = place.segment + 1 < segments.count ? place.segment + 1 : 0
        return Place(segment: segment, index: 0)
    }
}
