// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import DequeModule

/// The error of a Stream ID that names no stream (xHCI 4.12.2.1).
///
/// After a doorbell, ``Endpoint`` halts and posts an event; a command completes with TRB Error.
enum StreamError: Error {
    /// The Stream ID is reserved or too large.
    case invalidID
    /// The Stream Context Type (SCT) is not that of a transfer ring.
    case invalidType
}

/// The streams of a bulk endpoint (xHCI 4.12, 6.2.4), each with a transfer ring found through the
/// primary Stream Context Array, or through a secondary one.
///
/// A Stream Context is read when its stream is first used and written when the endpoint stops.
/// Streams have indices in the order of their first use, which are those of their queues in
/// ``Endpoint/queues``.
struct StreamTable {
    private struct Stream {
        let id: Int
        let contextAddress: UInt64
        /// SCT, at bits 3:1 as in the first doubleword.
        let type: UInt64
        /// The dequeue pointer that the context had.
        let dequeuePointer: RingPosition
        var isRunnable = false
        var isWaitingForCredits = false
    }

    /// The address of the primary array, which has 2^`sizeLog2` entries.
    private let array: UInt64
    private let sizeLog2: Int
    /// LSA: each entry of the primary array is a stream.
    private let isLinear: Bool

    /// The streams used so far.
    private var streams: [Stream] = []
    /// The indices of these streams, by Stream ID.
    private var indexByID: [Int: Int] = [:]
    private var runnable: Deque<Int> = []
    /// Streams with TDs to submit when the endpoint has credits again.
    private var waitingForCredits: [Int] = []

    /// `nil` for an endpoint without streams.
    init?(_ context: EndpointContext) {
        guard context.maxPrimaryStreams > 0 else { return nil }
        array = context.dequeuePointer & ~0xf
        sizeLog2 = Int(context.maxPrimaryStreams) + 1
        isLinear = context.hasLinearStreams
    }

    /// The largest number of streams that the endpoint can have; Stream ID 0 is reserved.
    var count: Int {
        isLinear ? (1 << sizeLog2) - 1 : XHCILimits.streamsPerEndpoint
    }

    // MARK: - Lookup

    /// The index of a stream; its context is read if this is its first use.
    mutating func index(of id: Int, _ bus: SystemBus) throws(StreamError) -> Int {
        if let index = indexByID[id] { return index }
        // 0 is reserved, 65534 and 65535 have meanings on the bus (USB 3.2, 8.12.1.4).
        guard id > 0, id < 65534, streams.count < XHCILimits.streamsPerEndpoint else {
            throw .invalidID
        }
        let stream = try load(id, bus)
        streams.append(stream)
        indexByID[id] = streams.count - 1
        return streams.count - 1
    }

    /// The Stream ID of the stream at an index.
    func id(at index: Int) -> Int { streams[index].id }

    /// The dequeue pointer that the context of a stream had at its first use.
    func dequeuePointer(at index: Int) -> RingPosition { streams[index].dequeuePointer }

    /// Reads a Stream Context (xHCI 6.2.4.1).
    private func load(_ id: Int, _ bus: SystemBus) throws(StreamError) -> Stream {
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
            dequeuePointer: RingPosition(rawValue: pointer))
    }

    private func loadPointer(at address: UInt64, _ bus: SystemBus) throws(StreamError) -> UInt64 {
        do throws(DMAError) {
            return try bus.memory.load(at: GuestAddress(address))
        } catch {
            bus.log("stream context: \(error)")
            throw .invalidID
        }
    }

    private static let contextSize = 16

    /// Stores the dequeue pointer of a stream and its Stopped EDTLA in its context.
    func store(_ queue: TransferQueue, at index: Int, _ bus: SystemBus) {
        let stream = streams[index]
        bus.store(queue.dequeuePointer.rawValue | stream.type, at: stream.contextAddress)
        let accumulated = UInt32(truncatingIfNeeded: queue.progress.accumulated) & 0xff_ffff
        bus.store(accumulated, at: stream.contextAddress &+ 8)
    }

    // MARK: - Runnable streams

    /// Marks a stream runnable.
    mutating func markRunnable(_ index: Int) {
        guard streams.indices.contains(index), !streams[index].isRunnable else { return }
        streams[index].isRunnable = true
        runnable.append(index)
    }

    /// Removes and returns the next runnable stream.
    mutating func popRunnable() -> Int? {
        guard let index = runnable.popFirst() else { return nil }
        streams[index].isRunnable = false
        return index
    }

    var hasRunnable: Bool { !runnable.isEmpty }

    /// Marks a stream that waits until TDs of other streams are retired.
    mutating func markWaitingForCredits(_ index: Int) {
        guard !streams[index].isWaitingForCredits else { return }
        streams[index].isWaitingForCredits = true
        waitingForCredits.append(index)
    }

    /// Makes the streams that wait for credits runnable.
    mutating func releaseWaitingForCredits() {
        guard !waitingForCredits.isEmpty else { return }
        for index in waitingForCredits {
            streams[index].isWaitingForCredits = false
            markRunnable(index)
        }
        waitingForCredits = []
    }
}
