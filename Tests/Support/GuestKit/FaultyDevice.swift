// SPDX-License-Identifier: Apache-2.0

public import Platform
public import USB

/// A device that misbehaves by the dice: the same seed gives the same device.
///
/// It answers at once or later on the loop's clock, in parts of what was asked, wrongly, twice or
/// never. What it gives is what ``pattern(at:)`` says, counted through all IN transfers of an
/// endpoint, so that an oracle knows every byte.
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
            return faults
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
    private var given: [UInt64]
    /// Bytes taken by OUT transfers, by endpoint number.
    public private(set) var taken: [[UInt8]]
    /// Endpoints that failed and do nothing until ``clearHalt(_:)``.
    private var halted: [EndpointAddress] = []

    public init(_ speed: USBSpeed, seed: UInt64, faults: Faults, loop: any EventLoop) {
        self.speed = speed
        self.faults = faults
        self.loop = loop
        random = SplitMix64(seed: seed)
        given = Array(repeating: 0, count: 16)
        taken = Array(repeating: [], count: 16)
    }

    /// The byte at a place of what an IN endpoint gives.
    public static func pattern(endpoint: UInt8, at place: UInt64) -> UInt8 {
        UInt8(truncatingIfNeeded: place &* 7 &+ place >> 8 &+ UInt64(endpoint) &* 31)
    }

    /// The number of transfers without an answer.
    public var waitingCount: Int { waiting.count }

    /// Bytes given by IN transfers of an endpoint so far.
    public func givenCount(_ endpoint: UInt8) -> UInt64 { given[Int(endpoint)] }

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
        let isBehind = waiting.contains { $0.transfer.endpoint == transfer.endpoint }
        guard isBehind || chance(faults.later) else {
            finish(transfer)
            return
        }
        // Transfers of one endpoint end in their order: nothing overtakes.
        guard !isBehind else {
            waiting.append((transfer, nil))
            return
        }
        waiting.append((transfer, later(transfer.endpoint)))
    }

    private func later(_ endpoint: EndpointAddress) -> Watch {
        let delay = Duration.microseconds(Int64(random.number(1...2000)))
        return loop.schedule(at: loop.now + delay) { [weak self] in self?.finishNext(endpoint) }
    }

    private func finishNext(_ endpoint: EndpointAddress) {
        guard let place = waiting.firstIndex(where: { $0.transfer.endpoint == endpoint }) else {
            return
        }
        let transfer = waiting.remove(at: place).transfer
        finish(transfer)
        startNext(endpoint)
    }

    /// The next transfer of the endpoint comes to its turn.
    private func startNext(_ endpoint: EndpointAddress) {
        guard let place = waiting.firstIndex(where: { $0.transfer.endpoint == endpoint }),
            waiting[place].watch == nil, !halted.contains(endpoint), !chance(faults.silence)
        else { return }
        waiting[place].watch = later(endpoint)
    }

    public func cancel(_ id: Transfer.ID) {
        guard let place = waiting.firstIndex(where: { $0.transfer.id == id }) else { return }
        let entry = waiting.remove(at: place)
        entry.watch?.cancel()
        // Only a transfer that has begun can have moved something.
        let count = entry.transfer.buffer.count
        let moved = entry.watch != nil && random.oneIn(2) ? random.number(0...count) : 0
        move(entry.transfer, moved)
        answer(entry.transfer.completion(.cancelled, transferred: moved))
        let endpoint = entry.transfer.endpoint
        restarts.append(
            loop.schedule(at: loop.now + .microseconds(1)) { [weak self] in
                self?.startNext(endpoint)
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
        }
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
            if transfer.endpoint != .control { halted.append(transfer.endpoint) }
        }
        move(transfer, moved)
        if chance(faults.impossibleLength) {
            port?.complete(
                transfer.completion(status, transferred: random.oneIn(2) ? .max : -1))
            return
        }
        answer(transfer.completion(status, transferred: moved))
        if chance(faults.twice) {
            port?.complete(transfer.completion(.completed, transferred: count))
        }
    }

    private func answer(_ completion: Transfer.Completion) {
        completions.append(completion)
        port?.complete(completion)
    }

    private func move(_ transfer: Transfer, _ count: Int) {
        let number = transfer.endpoint.number
        switch transfer.direction {
        case .in:
            let start = given[Int(number)]
            let bytes = (0..<count).map {
                Self.pattern(endpoint: number, at: start + UInt64($0))
            }
            transfer.buffer.copy(from: bytes)
            given[Int(number)] += UInt64(count)
        case .out:
            taken[Int(number)] += transfer.buffer.bytes(count: count)
        }
    }
}
