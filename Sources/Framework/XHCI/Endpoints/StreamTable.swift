// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import DequeModule

/// The streams of a bulk endpoint (xHCI 4.12, 6.2.4): a transfer ring each, found through an array of
/// Stream Contexts, or through one array more.
///
/// A Stream Context is read when its stream is first used and written when the endpoint stops. The
/// endpoint works on one stream at a time; the queues of the others are kept here.
struct StreamTable {
    /// Why there is no such stream.
    enum Mistake: Error {
        /// A reserved or too large Stream ID.
        case invalidID
        /// The Stream Context Type is not that of a transfer ring at this place.
        case invalidType
    }

    private struct Stream {
        let id: Int
        let contextAddress: UInt64
        /// SCT, bits 3:1 of the first doubleword, in its place.
        let type: UInt64
        var queue: TransferQueue
        var isReady = false
    }

    /// Where the primary array stands, and 2^n entries of it.
    private let array: UInt64
    private let sizeLog2: Int
    /// LSA: each entry of the primary array is a stream.
    private let isLinear: Bool

    /// The streams used so far, in the order of their first use.
    private var streams: [Stream] = []
    /// Their places by Stream ID.
    private var places: [Int: Int] = [:]
    private var ready: Deque<Int> = []
    /// Streams that have something to do, for which the endpoint had no room.
    private var starved: [Int] = []
    /// The stream whose queue the endpoint has; it stands in for that stream's here meanwhile.
    private(set) var selected: Int?

    /// `nil` for an endpoint without streams.
    init?(_ context: EndpointContext) {
        guard context.maxPrimaryStreams > 0 else { return nil }
        array = context.dequeuePointer & ~0xf
        sizeLog2 = Int(context.maxPrimaryStreams) + 1
        isLinear = context.hasLinearStreams
    }

    /// How many streams the endpoint has at the most; 0 is reserved.
    var count: Int {
        isLinear ? (1 << sizeLog2) - 1 : XHCILimits.streamsPerEndpoint
    }

    // MARK: - Finding

    /// The place of a stream, whose context is read if this is its first use.
    mutating func place(of id: Int, _ bus: SystemBus) throws(Mistake) -> Int {
        if let place = places[id] { return place }
        // 0 is no stream, 65534 and 65535 have meanings on the bus (USB 3.2, 8.12.1.4).
        guard id > 0, id < 65534, streams.count < XHCILimits.streamsPerEndpoint else {
            throw .invalidID
        }
        let stream = try load(id, bus)
        streams.append(stream)
        places[id] = streams.count - 1
        return streams.count - 1
    }

    /// Reads a Stream Context (xHCI 6.2.4.1).
    private func load(_ id: Int, _ bus: SystemBus) throws(Mistake) -> Stream {
        let primary = id & ((1 << sizeLog2) - 1)
        let secondary = id >> sizeLog2
        guard primary > 0, !isLinear || secondary == 0 else { throw .invalidID }
        var address = array &+ UInt64(primary * Self.contextSize)
        var pointer = try loadPointer(at: address, bus)
        let type = Int(pointer[bits: 1...3])
        if isLinear || type <= 1 {
            guard type == 1 else { throw .invalidType }
            guard secondary == 0 else { throw .invalidID }
        } else {
            // 2 to 7 stand for arrays of 8 to 256 streams.
            guard secondary < 1 << (type + 1) else { throw .invalidID }
            address = pointer & ~0xf &+ UInt64(secondary * Self.contextSize)
            pointer = try loadPointer(at: address, bus)
            guard pointer[bits: 1...3] == 0 else { throw .invalidType }
        }
        return Stream(
            id: id, contextAddress: address, type: pointer & 0xe,
            queue: TransferQueue(RingPosition(rawValue: pointer)))
    }

    private func loadPointer(at address: UInt64, _ bus: SystemBus) throws(Mistake) -> UInt64 {
        do throws(DMAError) {
            return try bus.memory.load(at: GuestAddress(address))
        } catch {
            bus.log("stream context: \(error)")
            throw .invalidID
        }
    }

    private static let contextSize = 16

    // MARK: - Selecting

    /// All places.
    var indices: Range<Int> { streams.indices }

    /// Whether the device has nothing of the streams that are not selected.
    var areSettled: Bool { streams.allSatisfy(\.queue.isSettled) }

    /// The Stream ID of the selected stream.
    var selectedID: Int { selected.map { streams[$0].id } ?? 0 }

    /// Gives the endpoint the queue of another stream, or of none, and keeps that of the last one.
    mutating func select(_ place: Int?, _ queue: inout TransferQueue) {
        guard place != selected else { return }
        if let selected { swap(&streams[selected].queue, &queue) }
        selected = place
        if let place { swap(&streams[place].queue, &queue) }
    }

    /// Writes where a stream's ring stands into its context, with the bytes since its last event.
    func store(_ queue: TransferQueue, of place: Int, _ bus: SystemBus) {
        let stream = streams[place]
        bus.store(queue.ring.rawValue | stream.type, at: stream.contextAddress)
        let accumulated = UInt32(truncatingIfNeeded: queue.progress.accumulated) & 0xff_ffff
        bus.store(accumulated, at: stream.contextAddress &+ 8)
    }

    // MARK: - Ready ones

    /// Notes that a stream has something to do.
    mutating func markReady(_ place: Int) {
        guard streams.indices.contains(place), !streams[place].isReady else { return }
        streams[place].isReady = true
        ready.append(place)
    }

    mutating func popReady() -> Int? {
        guard let place = ready.popFirst() else { return nil }
        streams[place].isReady = false
        return place
    }

    var hasReady: Bool { !ready.isEmpty }

    /// Notes that a stream has to wait until others have given room.
    mutating func markStarved(_ place: Int) { starved.append(place) }

    /// There may be room, so streams that waited for it are ready.
    mutating func releaseStarved() {
        guard !starved.isEmpty else { return }
        for place in starved { markReady(place) }
        starved = []
    }
}
