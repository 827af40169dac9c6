// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Logging
internal import Platform
internal import SystemPackage

/// One client of the control socket: lines become requests, requests are answered in their order.
///
/// Nothing is read while a request is under way or an answer waits to be taken, so a client can make
/// this end hold one line, one descriptor and one answer.
final class ControlConnection {
    typealias Handler =
        (ControlSocketRequest, ReceivedDescriptor?, @escaping (ControlAnswer) -> Void) -> Void

    private static let lineEnd = UInt8(ascii: "\n")

    /// A class, so that the descriptor can be borrowed while other state changes.
    private final class OpenSocket {
        let descriptor: OwnedDescriptor
        init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }
    }

    /// Descriptors, and the place in `input` of the line that they came with.
    private final class Arrival {
        var place: Int
        var descriptors: DescriptorList

        init(_ descriptors: consuming DescriptorList, place: Int) {
            self.place = place
            self.descriptors = descriptors
        }
    }

    private let loop: any EventLoop
    private let patience: Duration
    private let handler: Handler
    private var ended: (() -> Void)?

    private var socket: OpenSocket?
    private var watch: Watch?
    private var watchedEvents: Readiness = []
    private var timer: Watch?
    private var continuation: Watch?
    private var farewell: Watch?

    private var input: [UInt8] = []
    /// Bytes of `input` that were taken as lines in this turn; dropped at its end, all at once.
    private var taken = 0
    /// Bytes of `input` that are known to hold no end of a line.
    private var scanned = 0
    private var arrivals: [Arrival] = []
    private var output: [UInt8] = []
    private var isWaiting = false
    private var inputHasEnded = false
    /// After a line that leaves no way to find the next.
    private var endsWhenSent = false
    private var isGoingOn = false

    /// - Parameters:
    ///   - handler: carries out a request and calls back once, at once or later.
    ///   - ended: called once, on the loop, never from within another function of this class.
    init(
        socket: consuming OwnedDescriptor, loop: any EventLoop, patience: Duration,
        handler: @escaping Handler, whenEnded ended: @escaping () -> Void
    ) {
        self.socket = OpenSocket(socket)
        self.loop = loop
        self.patience = patience
        self.handler = handler
        self.ended = ended
        goOn()
    }

    private func end() {
        guard socket != nil else { return }
        watch = nil
        timer = nil
        continuation = nil
        socket = nil
        forgetInput()
        output = []
        farewell = loop.schedule(at: loop.now) { [self] in
            farewell = nil
            let body = ended
            ended = nil
            body?()
        }
    }

    // MARK: - The loop

    /// Carries out what has been received, then waits for what is to come next.
    private func goOn() {
        isGoingOn = true
        defer { isGoingOn = false }
        continuation = nil
        var count = 0
        while count < ServiceLimits.requestsPerTurn, canCarryOut, let line = nextLine() {
            count += 1
            carryOut(line)
        }
        dropTaken()
        guard socket != nil else { return }
        if count == ServiceLimits.requestsPerTurn {
            continuation = loop.schedule(at: loop.now) { [weak self] in self?.goOn() }
        }
        let isIdle = !isWaiting && output.isEmpty && continuation == nil
        if isIdle && (endsWhenSent || inputHasEnded) { return end() }
        var events: Readiness = []
        if !output.isEmpty { events.insert(.writable) }
        if isIdle { events.insert(.readable) }
        watchSocket(for: events)
        watchTime(!output.isEmpty || isIdle && !input.isEmpty)
    }

    private var canCarryOut: Bool {
        socket != nil && !isWaiting && output.isEmpty && !endsWhenSent
    }

    private func watchSocket(for events: Readiness) {
        guard events != watchedEvents || watch == nil, let socket else { return }
        watch = nil
        watchedEvents = events
        // A watch for nothing would still tell of a peer that hung up, over and over.
        guard !events.isEmpty else { return }
        do throws(Errno) {
            watch = try loop.watch(socket.descriptor, for: events) { [weak self] _ in
                self?.socketIsReady()
            }
        } catch {
            end()
        }
    }

    private func watchTime(_ isRunning: Bool) {
        guard isRunning else {
            timer = nil
            return
        }
        guard timer == nil else { return }
        timer = loop.schedule(at: loop.now + patience) { [weak self] in self?.end() }
    }

    private func socketIsReady() {
        if !output.isEmpty { flush() } else { receive() }
        goOn()
    }

    // MARK: - Receiving

    private func receive() {
        guard let socket else { return }
        let start = input.count
        // One byte more than the longest line has is its end.
        let room = ServiceLimits.controlLine + 1 - start
        guard room > 0 else { return }
        var arrived = DescriptorList()
        var failure: Errno?
        let chunk = unsafe [UInt8](unsafeUninitializedCapacity: room) { buffer, count in
            do throws(Errno) {
                count = try unsafe UnixSocket.receive(
                    into: UnsafeMutableRawBufferPointer(buffer), descriptors: &arrived,
                    from: socket.descriptor)
            } catch {
                failure = error
            }
        }
        if let failure {
            if failure != .wouldBlock { end() }
            return
        }
        input += chunk
        if chunk.isEmpty { return inputEnded() }
        if !arrived.isEmpty || arrived.isTruncated { keep(arrived) }
        if input.count > ServiceLimits.controlLine && !input.contains(Self.lineEnd) {
            refuseRest("a line of more than \(ServiceLimits.controlLine) bytes")
        }
    }

    private func inputEnded() {
        inputHasEnded = true
        guard !input.isEmpty else { return }
        refuseRest("the last line has no end")
    }

    /// Descriptors belong to the line that the last of the bytes belongs to with which they came: the
    /// kernel joins earlier bytes to those of a message with descriptors, and never later ones.
    private func keep(_ arrived: consuming DescriptorList) {
        let last = input.count - 1
        let place = input[..<last].lastIndex(of: Self.lineEnd).map { $0 + 1 } ?? 0
        guard let same = arrivals.last, same.place == place else {
            return arrivals.append(Arrival(arrived, place: place))
        }
        // More than one is refused, so the first need not be kept either.
        same.descriptors = DescriptorList()
        same.descriptors.isTruncated = true
    }

    /// The next whole line, without its end, and the descriptors that came with it.
    private func nextLine() -> (bytes: [UInt8], arrival: Arrival?)? {
        guard let end = input[scanned...].firstIndex(of: Self.lineEnd) else {
            scanned = input.count
            return nil
        }
        let line = Array(input[taken..<end])
        taken = end + 1
        scanned = taken
        var arrival: Arrival?
        if let first = arrivals.first, first.place <= end { arrival = arrivals.removeFirst() }
        return (line, arrival)
    }

    private func dropTaken() {
        input.removeFirst(taken)
        scanned -= taken
        for arrival in arrivals { arrival.place -= taken }
        taken = 0
    }

    // MARK: - Requests

    private func carryOut(_ line: (bytes: [UInt8], arrival: Arrival?)) {
        let request: ControlSocketRequest
        var descriptor: ReceivedDescriptor?
        do throws(ControlError) {
            request = try ControlSocketRequest(line: line.bytes)
            if let arrival = line.arrival {
                descriptor = try Self.descriptor(of: arrival, for: request)
            }
        } catch {
            return send(ControlAnswer(error))
        }
        isWaiting = true
        handler(request, descriptor) { [weak self] answer in
            guard let self, isWaiting else { return }
            isWaiting = false
            send(answer)
            if !isGoingOn { goOn() }
        }
    }

    private static func descriptor(
        of arrival: Arrival, for request: ControlSocketRequest
    ) throws(ControlError) -> ReceivedDescriptor? {
        guard !arrival.descriptors.isTruncated, arrival.descriptors.count == 1 else {
            throw ControlError(
                .badRequest, "more descriptors came than the one that a request may have")
        }
        guard request.takesDescriptor else {
            throw ControlError(.badRequest, "a descriptor came with a request that needs none")
        }
        guard let descriptor = arrival.descriptors.take(0) else { return nil }
        return ReceivedDescriptor(descriptor)
    }

    /// What has come makes no line, so nothing behind it can be understood.
    private func refuseRest(_ reason: String) {
        forgetInput()
        endsWhenSent = true
        send(ControlAnswer(ControlError(.badRequest, reason)))
    }

    private func forgetInput() {
        input = []
        taken = 0
        scanned = 0
        arrivals = []
    }

    // MARK: - Sending

    private func send(_ answer: ControlAnswer) {
        guard socket != nil else { return }
        output += answer.line
        flush()
    }

    private func flush() {
        guard !output.isEmpty, let socket else { return }
        var failure: Errno?
        let sent = unsafe output.withUnsafeBytes { bytes in
            do throws(Errno) {
                return try unsafe UnixSocket.send(bytes, to: socket.descriptor)
            } catch {
                failure = error
                return 0
            }
        }
        if let failure {
            if failure != .wouldBlock { end() }
            return
        }
        output.removeFirst(sent)
        // It reads, so it gets more time for the rest.
        timer = nil
    }
}
