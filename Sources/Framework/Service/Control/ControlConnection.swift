// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Logging
internal import Platform
internal import SystemPackage

/// A client of the control socket. Its requests are executed and answered in their order.
///
/// Nothing is received while a request is executed or an answer is unsent, so the memory and the
/// descriptors that a client occupies are bounded.
final class ControlConnection {
    /// Executes a request and calls back once with the answer, at once or later.
    typealias Handler =
        (ControlSocketRequest, ReceivedDescriptor?, @escaping (ControlAnswer) -> Void) -> Void

    private let loop: any EventLoop
    private let timeout: Duration
    private let operations: [BackendOperation]
    private let handler: Handler
    private var onEnd: (() -> Void)?

    /// `nil` once the connection has ended.
    private var socket: SharedDescriptor?
    private var watch: Watch?
    private var watchedEvents: Readiness = []
    private var timer: Watch?
    /// Continues in the next turn, if more lines have been received than one turn may execute.
    private var nextTurn: Watch?
    private var endNotification: Watch?

    private var input = ControlLines()
    private var output: [UInt8] = []
    /// Whether the handler has a request and has not answered it.
    private var isExecuting = false
    /// Whether the client has shut down its sending side.
    private var inputHasEnded = false
    /// Whether the connection ends when its answers are sent, because the input is invalid.
    private var endsWhenSent = false
    private var isAdvancing = false

    /// - Parameters:
    ///   - timeout: see ``ServiceLimits/controlTimeout``.
    ///   - operations: the operations that the backends declare.
    ///   - handler: executes a request.
    ///   - onEnd: called once, on the loop, not from within another function of this class.
    init(
        socket: consuming OwnedDescriptor, loop: any EventLoop, timeout: Duration,
        operations: [BackendOperation], handler: @escaping Handler, onEnd: @escaping () -> Void
    ) {
        self.socket = SharedDescriptor(socket)
        self.loop = loop
        self.timeout = timeout
        self.operations = operations
        self.handler = handler
        self.onEnd = onEnd
        advance()
    }

    private func end() {
        guard socket != nil else { return }
        watch = nil
        timer = nil
        nextTurn = nil
        socket = nil
        input.removeAll()
        output = []
        endNotification = loop.schedule(at: loop.now) { [self] in
            endNotification = nil
            let body = onEnd
            onEnd = nil
            body?()
        }
    }

    // MARK: - Turns

    /// Executes the lines that have been received, then waits for the next event.
    private func advance() {
        isAdvancing = true
        defer { isAdvancing = false }
        nextTurn = nil
        var count = 0
        while count < ServiceLimits.requestsPerTurn, canExecute, let line = input.next() {
            count += 1
            execute(line)
        }
        input.compact()
        guard socket != nil else { return }
        if count == ServiceLimits.requestsPerTurn {
            nextTurn = loop.schedule(at: loop.now) { [weak self] in self?.advance() }
        }
        let isIdle = !isExecuting && output.isEmpty && nextTurn == nil
        if isIdle && (endsWhenSent || inputHasEnded) { return end() }
        var events: Readiness = []
        if !output.isEmpty { events.insert(.writable) }
        if isIdle { events.insert(.readable) }
        watchSocket(for: events)
        let waitsForClient = !output.isEmpty || isIdle && !input.isEmpty
        if waitsForClient { startTimer() } else { timer = nil }
    }

    private var canExecute: Bool {
        socket != nil && !isExecuting && output.isEmpty && !endsWhenSent
    }

    private func watchSocket(for events: Readiness) {
        guard events != watchedEvents || watch == nil, let socket else { return }
        watch = nil
        watchedEvents = events
        // epoll reports a hangup even to a watch for no events, in every turn.
        guard !events.isEmpty else { return }
        do throws(Errno) {
            watch = try loop.watch(socket.descriptor, for: events) { [weak self] _ in
                self?.socketIsReady()
            }
        } catch {
            end()
        }
    }

    private func startTimer() {
        guard timer == nil else { return }
        timer = loop.schedule(at: loop.now + timeout) { [weak self] in self?.end() }
    }

    private func socketIsReady() {
        if !output.isEmpty { flush() } else { receive() }
        advance()
    }

    // MARK: - Requests

    private func execute(_ line: ControlLines.Line) {
        let request: ControlSocketRequest
        let descriptor: ReceivedDescriptor?
        do throws(ControlError) {
            request = try ControlSocketRequest(line: line.bytes, operations: operations)
            descriptor = try line.descriptor(for: request)
        } catch {
            return send(ControlAnswer(error))
        }
        isExecuting = true
        handler(request, descriptor) { [weak self] answer in
            guard let self, isExecuting else { return }
            isExecuting = false
            send(answer)
            if !isAdvancing { advance() }
        }
    }

    /// Answers invalid input. The beginning of the next line cannot be found, so the connection
    /// ends then.
    private func refuseInput(_ reason: String) {
        input.removeAll()
        endsWhenSent = true
        send(ControlAnswer(ControlError(.badRequest, reason)))
    }

    // MARK: - The socket

    private func receive() {
        guard let socket, input.room > 0 else { return }
        var descriptors = DescriptorList()
        var failure: Errno?
        let chunk = unsafe [UInt8](unsafeUninitializedCapacity: input.room) { buffer, count in
            do throws(Errno) {
                count = try unsafe UnixSocket.receive(
                    into: UnsafeMutableRawBufferPointer(buffer), descriptors: &descriptors,
                    from: socket.descriptor)
            } catch {
                failure = error
            }
        }
        if let failure {
            if failure != .wouldBlock { end() }
            return
        }
        guard !chunk.isEmpty else {
            inputHasEnded = true
            if !input.isEmpty { refuseInput("the last line has no line feed") }
            return
        }
        input.append(chunk, descriptors)
        if input.isOverlong {
            refuseInput("a line of more than \(ServiceLimits.controlLine) bytes")
        }
    }

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
        // The client is reading, so the timeout starts anew.
        timer = nil
    }
}
