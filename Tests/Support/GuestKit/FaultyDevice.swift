// SPDX-License-Identifier: Apache-2.0

public import Platform
internal import TestKit
public import USB

/// A device with random faults; the same seed produces the same faults.
///
/// It completes a transfer at once or later on the loop's clock, in full or in part, with an error,
/// twice or never. The data of its IN transfers is ``pattern(endpoint:stream:at:)``, with an offset
/// that counts all IN transfers of the endpoint or stream, so an oracle can compute every byte.
/// Streams of an endpoint do not wait for each other, and halt together.
public final class FaultyDevice: USBDevice {
    /// The probability of each fault: 1 in this number of transfers; 0 is never.
    public struct Faults: Sendable {
        /// The transfer completes up to 2 ms later.
        public var later = 0
        /// An IN transfer moves fewer bytes than were requested.
        public var short = 0
        public var stall = 0
        public var babble = 0
        /// A transaction error.
        public var fail = 0
        public var disconnect = 0
        /// The transfer does not complete until it is cancelled.
        public var silence = 0
        /// The transfer is completed a second time.
        public var twice = 0
        /// A transfer that was never submitted is completed.
        public var unknown = 0
        /// The number of moved bytes exceeds the buffer, or is negative.
        public var impossibleLength = 0
        /// The device accesses the memory of a transfer that has ended.
        public var lateAccess = 0
        /// The device does not end a transfer that the controller cancels.
        public var ignoredCancel = 0

        public init() {}

        /// Delays and short packets only, as with every real device.
        public static var none: Faults {
            var faults = Faults()
            faults.later = 3
            faults.short = 4
            return faults
        }

        /// Every fault, often.
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

    /// An endpoint, or a stream of one: its transfers complete in order.
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
    /// The first completion of each transfer, in order.
    public private(set) var completions: [Transfer.Completion] = []
    /// Called for each transfer that is submitted.
    public var onSubmit: ((Transfer) -> Void)?
    private let loop: any EventLoop
    private var random: SplitMix64
    private var waiting: [(transfer: Transfer, watch: Watch?)] = []
    private var restarts: [Watch] = []
    /// The numbers of bytes moved by IN transfers.
    private var sentCounts: [Lane: UInt64] = [:]
    /// The bytes moved by OUT transfers.
    private var received: [Lane: [UInt8]] = [:]
    /// The stream count that the controller last set for each endpoint.
    public private(set) var streamCounts: [EndpointAddress: Int] = [:]
    /// The byte with which the guest fills the memory of an ended transfer.
    public static let reusedByte: UInt8 = 0xdd
    /// Accesses to memory that the guest had reused. There must be none.
    public private(set) var accessesToReusedMemory = 0
    private var lateAccesses: [Watch] = []
    /// Endpoints that have failed; they move nothing until ``clearHalt(_:)``.
    private var halted: [EndpointAddress] = []

    public init(_ speed: USBSpeed, seed: UInt64, faults: Faults, loop: any EventLoop) {
        self.speed = speed
        self.faults = faults
        self.loop = loop
        random = SplitMix64(seed: seed)
    }

    /// The byte at an offset of the data that an IN endpoint, or a stream of one, sends.
    public static func pattern(endpoint: UInt8, stream: UInt16 = 0, at offset: UInt64) -> UInt8 {
        UInt8(
            truncatingIfNeeded: offset &* 7 &+ offset >> 8 &+ UInt64(endpoint) &* 31
                &+ UInt64(stream) &* 53)
    }

    /// The number of transfers that have not completed.
    public var waitingCount: Int { waiting.count }

    /// The number of bytes that IN transfers of an endpoint have moved.
    public func sentCount(_ endpoint: UInt8, stream: UInt16 = 0) -> UInt64 {
        sentCounts[Lane(EndpointAddress(endpoint, .in), stream)] ?? 0
    }

    /// The bytes that OUT transfers of an endpoint have moved.
    public func received(_ endpoint: UInt8, stream: UInt16 = 0) -> [UInt8] {
        received[Lane(EndpointAddress(endpoint, .out), stream)] ?? []
    }

    public func setStreams(_ count: Int, for endpoint: EndpointAddress) {
        streamCounts[endpoint] = count
    }

    /// Clears a halt, as CLEAR_FEATURE(ENDPOINT_HALT) does.
    public func clearHalt(_ endpoint: EndpointAddress) { halted.removeAll { $0 == endpoint } }

    /// Whether a transfer of an endpoint has not completed.
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
        // Transfers of one lane complete in order.
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
        guard let index = waiting.firstIndex(where: { Lane($0.transfer) == lane }) else { return }
        let transfer = waiting.remove(at: index).transfer
        finish(transfer)
        startNext(lane)
    }

    /// Schedules the completion of the lane's next transfer.
    private func startNext(_ lane: Lane) {
        guard let index = waiting.firstIndex(where: { Lane($0.transfer) == lane }),
            waiting[index].watch == nil, !halted.contains(waiting[index].transfer.endpoint),
            !chance(faults.silence)
        else { return }
        waiting[index].watch = later(lane)
    }

    /// Halts an endpoint with all its streams.
    private func halt(_ endpoint: EndpointAddress) {
        halted.append(endpoint)
        for index in waiting.indices where waiting[index].transfer.endpoint == endpoint {
            waiting[index].watch?.cancel()
            waiting[index].watch = nil
        }
    }

    public func cancel(_ id: Transfer.ID) {
        guard let index = waiting.firstIndex(where: { $0.transfer.id == id }) else { return }
        let entry = waiting.remove(at: index)
        entry.watch?.cancel()
        if chance(faults.ignoredCancel) {
            writeLate(to: entry.transfer)
            return
        }
        // Only a transfer that was scheduled can have moved bytes.
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

    /// Reads the memory of an ended transfer up to 200 ms later, and counts the access if the
    /// memory holds nothing but ``reusedByte``: the guest has reused it, so the access should have
    /// been refused.
    private func accessLate(_ transfer: Transfer) {
        guard chance(faults.lateAccess) else { return }
        let delay = Duration.microseconds(Int64(random.number(1...200_000)))
        schedule(after: delay) { [weak self] in
            let bytes = transfer.buffer.bytes()
            guard bytes.count >= 8, bytes.allSatisfy({ $0 == Self.reusedByte }) else { return }
            self?.accessesToReusedMemory += 1
        }
    }

    /// Writes to the memory of a transfer 100 to 300 ms after its cancellation, and completes it
    /// then.
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
            let start = sentCounts[lane] ?? 0
            let bytes = (0..<count).map {
                Self.pattern(
                    endpoint: lane.number, stream: lane.stream, at: start + UInt64($0))
            }
            transfer.buffer.copy(from: bytes)
            sentCounts[lane] = start + UInt64(count)
        case .out:
            received[lane, default: []] += transfer.buffer.bytes(count: count)
        }
    }
}
