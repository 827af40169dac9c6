// SPDX-License-Identifier: Apache-2.0

public import Platform
internal import TestKit
public import USB

/// A device that misbehaves by the dice: the same seed gives the same device.
///
/// It answers at once or later on the loop's clock, in parts of what was asked, wrongly, twice or
/// never. What it gives is what ``pattern(endpoint:stream:at:)`` says, counted through all IN transfers
/// of an endpoint or stream, so that an oracle knows every byte. Streams of an endpoint do not wait for
/// each other, and halt together.
public final class FaultyDevice: USBDevice {
    /// How often things happen: once in so many transfers; zero is never.
    public struct Faults: Sendable {
        public var later = 0
        public var short = 0
        public var stall = 0
        public var babble = 0
        public var fail = 0
        public var disconnect = 0
        public var silence = 0
        public var twice = 0
        public var unknown = 0
        /// More bytes moved than there was room for, or fewer than none.
        public var impossibleLength = 0
        /// Accesses to the memory of a transfer that has ended.
        public var lateAccess = 0
        /// Transfers that are not cancelled when the controller asks for it.
        public var ignoredCancel = 0

        public init() {}

        /// Nothing but delays and short packets: what every real device does.
        public static var none: Faults {
            var faults = Faults()
            faults.later = 3
            faults.short = 4
            return faults
        }

        /// Everything, often.
        public static var all: Faults {
            var faults = none
            faults.stall = 12
            faults.babble = 20
            faults.fail = 14
            faults.silence = 25
            faults.twice = 9
            faults.unknown = 9
            faults.impossibleLength = 40
            faults.lateAccess = 6
            faults.ignoredCancel = 12
            return faults
        }
    }

    /// What has an order of its own: an endpoint, or a stream of one.
    private struct Lane: Hashable {
        let number: UInt8
        let stream: UInt16
        let direction: Direction

        init(_ endpoint: EndpointAddress, _ stream: UInt16) {
            number = endpoint.number
            self.stream = stream
            direction = endpoint.direction
        }

        init(_ transfer: Transfer) {
            number = transfer.endpoint.number
            direction = transfer.direction
            if case .bulk(let stream) = transfer.kind { self.stream = stream } else { stream = 0 }
        }
    }

    public let speed: USBSpeed
    public var summary: String { "faulty device" }
    public var faults: Faults
    public private(set) var port: (any USBPort)?
    /// What the device says to have moved, for each transfer that it completed first.
    public private(set) var completions: [Transfer.Completion] = []
    /// Called for each transfer that is submitted.
    public var onSubmit: ((Transfer) -> Void)?
    private let loop: any EventLoop
    private var random: SplitMix64
    private var waiting: [(transfer: Transfer, watch: Watch?)] = []
    private var restarts: [Watch] = []
    /// Bytes given by IN transfers.
    private var given: [Lane: UInt64] = [:]
    /// Bytes taken by OUT transfers.
    private var taken: [Lane: [UInt8]] = [:]
    /// How many streams the controller said that it uses.
    public private(set) var streamCounts: [EndpointAddress: Int] = [:]
    /// The byte with which the guest fills memory that is its own again.
    public static let reusedByte: UInt8 = 0xdd
    /// Accesses to memory that the guest had reused: there must be none.
    public private(set) var accessesToReusedMemory = 0
    private var lateAccesses: [Watch] = []
    /// Endpoints that failed and do nothing until ``clearHalt(_:)``.
    private var halted: [EndpointAddress] = []

    public init(_ speed: USBSpeed, seed: UInt64, faults: Faults, loop: any EventLoop) {
        self.speed = speed
        self.faults = faults
        self.loop = loop
        random = SplitMix64(seed: seed)
    }

    /// The byte at a place of what an IN endpoint, or a stream of it, gives.
    public static func pattern(endpoint: UInt8, stream: UInt16 = 0, at place: UInt64) -> UInt8 {
        UInt8(
            truncatingIfNeeded: place &* 7 &+ place >> 8 &+ UInt64(endpoint) &* 31
                &+ UInt64(stream) &* 53)
    }

    /// The number of transfers without an answer.
    public var waitingCount: Int { waiting.count }

    /// Bytes given by IN transfers of an endpoint so far.
    public func givenCount(_ endpoint: UInt8, stream: UInt16 = 0) -> UInt64 {
        given[Lane(EndpointAddress(endpoint, .in), stream)] ?? 0
    }

    /// Bytes taken by OUT transfers of an endpoint so far.
    public func taken(_ endpoint: UInt8, stream: UInt16 = 0) -> [UInt8] {
        taken[Lane(EndpointAddress(endpoint, .out), stream)] ?? []
    }

    public func setStreams(_ count: Int, for endpoint: EndpointAddress) {
        streamCounts[endpoint] = count
    }

    /// What a driver does with CLEAR_FEATURE(ENDPOINT_HALT).
    public func clearHalt(_ endpoint: EndpointAddress) { halted.removeAll { $0 == endpoint } }

    /// Whether the device holds a transfer of an endpoint.
    public func holds(_ endpoint: EndpointAddress) -> Bool {
        waiting.contains { $0.transfer.endpoint == endpoint }
    }

    public func attach(to port: any USBPort) { self.port = port }

    public func detached() {
        for entry in waiting { entry.watch?.cancel() }
        waiting = []
        port = nil
    }

    public func submit(_ transfer: Transfer) {
        onSubmit?(transfer)
        if chance(faults.unknown) {
            port?.complete(
                Transfer.Completion(
                    id: Transfer.ID(rawValue: random.next()), status: .completed, transferred: 9))
        }
        if chance(faults.disconnect) {
            port?.disconnect()
            return
        }
        if halted.contains(transfer.endpoint) || chance(faults.silence) {
            waiting.append((transfer, nil))
            return
        }
        let lane = Lane(transfer)
        let isBehind = waiting.contains { Lane($0.transfer) == lane }
        guard isBehind || chance(faults.later) else {
            finish(transfer)
            return
        }
        // Transfers of one lane end in their order: nothing overtakes.
        guard !isBehind else {
            waiting.append((transfer, nil))
            return
        }
        waiting.append((transfer, later(lane)))
    }

    private func later(_ lane: Lane) -> Watch {
        let delay = Duration.microseconds(Int64(random.number(1...2000)))
        return loop.schedule(at: loop.now + delay) { [weak self] in self?.finishNext(lane) }
    }

    private func finishNext(_ lane: Lane) {
        guard let place = waiting.firstIndex(where: { Lane($0.transfer) == lane }) else { return }
        let transfer = waiting.remove(at: place).transfer
        finish(transfer)
        startNext(lane)
    }

    /// The next transfer of the lane comes to its turn.
    private func startNext(_ lane: Lane) {
        guard let place = waiting.firstIndex(where: { Lane($0.transfer) == lane }),
            waiting[place].watch == nil, !halted.contains(waiting[place].transfer.endpoint),
            !chance(faults.silence)
        else { return }
        waiting[place].watch = later(lane)
    }

    /// An endpoint that halts moves nothing any more, on no stream.
    private func halt(_ endpoint: EndpointAddress) {
        halted.append(endpoint)
        for place in waiting.indices where waiting[place].transfer.endpoint == endpoint {
            waiting[place].watch?.cancel()
            waiting[place].watch = nil
        }
    }

    public func cancel(_ id: Transfer.ID) {
        guard let place = waiting.firstIndex(where: { $0.transfer.id == id }) else { return }
        let entry = waiting.remove(at: place)
        entry.watch?.cancel()
        if chance(faults.ignoredCancel) {
            writeLate(to: entry.transfer)
            return
        }
        // Only a transfer that has begun can have moved something.
        let count = entry.transfer.buffer.count
        let moved = entry.watch != nil && random.oneIn(2) ? random.number(0...count) : 0
        move(entry.transfer, moved)
        answer(entry.transfer.completion(.cancelled, transferred: moved))
        accessLate(entry.transfer)
        let lane = Lane(entry.transfer)
        restarts.append(
            loop.schedule(at: loop.now + .microseconds(1)) { [weak self] in
                self?.startNext(lane)
            })
        if restarts.count > 64 { restarts.removeFirst(32) }
    }

    public func reset() {
        let all = waiting
        waiting = []
        halted = []
        for entry in all {
            entry.watch?.cancel()
            answer(entry.transfer.completion(.cancelled))
            accessLate(entry.transfer)
        }
    }

    // MARK: - Late accesses

    /// Looks, at some time after the end of a transfer, whether its memory can still be accessed though
    /// the guest has filled it with ``reusedByte``.
    private func accessLate(_ transfer: Transfer) {
        guard chance(faults.lateAccess) else { return }
        let delay = Duration.microseconds(Int64(random.number(1...200_000)))
        schedule(after: delay) { [weak self] in
            let bytes = transfer.buffer.bytes()
            guard bytes.count >= 8, bytes.allSatisfy({ $0 == Self.reusedByte }) else { return }
            self?.accessesToReusedMemory += 1
        }
    }

    /// Writes to the memory of a transfer after the controller has waited for its end in vain, and
    /// completes it.
    private func writeLate(to transfer: Transfer) {
        let delay = Duration.milliseconds(Int64(random.number(100...300)))
        schedule(after: delay) { [weak self] in
            let bytes = [UInt8](repeating: 0xee, count: transfer.buffer.count)
            if transfer.buffer.copy(from: bytes) > 0 { self?.accessesToReusedMemory += 1 }
            self?.port?.complete(
                transfer.completion(.completed, transferred: transfer.buffer.count))
        }
    }

    private func schedule(after delay: Duration, _ body: @escaping () -> Void) {
        lateAccesses.append(loop.schedule(at: loop.now + delay, body))
        if lateAccesses.count > 256 { lateAccesses.removeFirst(128) }
    }

    private func chance(_ count: Int) -> Bool { count > 0 && random.oneIn(count) }

    private func finish(_ transfer: Transfer) {
        let count = transfer.buffer.count
        var status = Transfer.Status.completed
        var moved = count
        if transfer.direction == .in, chance(faults.short) { moved = random.number(0...count) }
        if chance(faults.stall) { status = .stalled }
        if chance(faults.babble) { status = .babbled }
        if chance(faults.fail) { status = .failed }
        if status != .completed {
            moved = random.number(0...count)
            // The default control endpoint recovers by itself with the next request.
            if transfer.endpoint != .control { halt(transfer.endpoint) }
        }
        move(transfer, moved)
        if chance(faults.impossibleLength) {
            port?.complete(
                transfer.completion(status, transferred: random.oneIn(2) ? .max : -1))
            return
        }
        answer(transfer.completion(status, transferred: moved))
        accessLate(transfer)
        if chance(faults.twice) {
            port?.complete(transfer.completion(.completed, transferred: count))
        }
    }

    private func answer(_ completion: Transfer.Completion) {
        completions.append(completion)
        port?.complete(completion)
    }

    private func move(_ transfer: Transfer, _ count: Int) {
        let lane = Lane(transfer)
        switch transfer.direction {
        case .in:
            let start = given[lane] ?? 0
            let bytes = (0..<count).map {
                Self.pattern(
                    endpoint: lane.number, stream: lane.stream, at: start + UInt64($0))
            }
            transfer.buffer.copy(from: bytes)
            given[lane] = start + UInt64(count)
        case .out:
            taken[lane, default: []] += transfer.buffer.bytes(count: count)
        }
    }
}
