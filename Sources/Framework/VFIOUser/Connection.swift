// SPDX-License-Identifier: Apache-2.0

public import Logging
public import Platform
public import SystemPackage

/// The connection to one client: receives its messages and descriptors, has the ``Session`` handle
/// them, and sends the replies.
///
/// It watches its socket on the event loop. The device accesses guest memory without a descriptor
/// through ``readMemory(into:at:)`` and ``writeMemory(_:at:)``.
public final class Connection {
    /// The reason why a connection ended.
    public enum End: Equatable, Sendable {
        /// The client closed the socket, or its process ended.
        case clientDisconnected
        /// The client broke the protocol, and no further message can be understood.
        case protocolViolation(String)
        /// The client does not read the replies.
        case clientStoppedReading
        /// A system call on the socket failed.
        case failed(Errno)
        /// The server called ``close()``.
        case closedByServer
    }

    let loop: any EventLoop
    let session: Session
    let logger: Logger
    /// The access to guest memory that waits for the client's reply.
    var pendingAccess: PendingMemoryAccess?
    /// The layout of the client's DMA_READ and DMA_WRITE messages, once it is known.
    var memoryLayout: MemoryMessageLayout?
    /// The ID of the last request that timed out. Accesses fail at once until its reply arrives.
    var timedOutRequest: UInt16?
    private var nextRequest: UInt16 = 1
    /// A variable, because tests set other timeouts.
    var memoryAccessTimeout = VFIOUserLimits.memoryAccessTimeout
    /// The time at which accesses to guest memory time out. All accesses in one turn of the event
    /// loop share it, because the loop serves nothing else meanwhile.
    var accessDeadline: Duration?
    /// Clears ``accessDeadline`` in the next turn of the event loop.
    var accessDeadlineReset: Watch?
    /// Whether requests wait until the next turn of the event loop, because one of them cannot be
    /// handled while the device accesses guest memory.
    private(set) var isInputPaused = false
    /// Whether the session is handling a request, so that the reply buffer is in use.
    private(set) var isHandlingRequest = false

    private var socket: SharedDescriptor?
    private var watch: Watch?
    private var watchedEvents: Readiness = []
    /// The call in the next turn of the event loop that resumes a paused input, or reports the end.
    private var nextTurn: Watch?
    private var onEnd: ((End) -> Void)?

    private let input = ReceiveBuffer()
    private let reply = MessageBuffer(capacity: VFIOUserLimits.messageSize)
    private let request = MessageBuffer(capacity: VFIOUserLimits.messageSize)
    /// The bytes that the socket has not accepted yet.
    private var output: [UInt8] = []

    /// Serves a device to the client at the other end of a connected stream socket.
    ///
    /// - Parameters:
    ///   - socket: owned, and closed when the connection ends.
    ///   - device: handles the client's requests. It keeps the client's memory and eventfds when
    ///     the connection ends.
    ///   - loop: the event loop of the calling thread.
    ///   - logger: for messages about this client.
    ///   - onEnd: called once, by the loop, when the connection has ended.
    /// - Throws: the errno of fcntl(2) or epoll_ctl(2).
    public init(
        socket: consuming OwnedDescriptor, device: any VFIODevice, loop: any EventLoop,
        logger: Logger,
        onEnd: @escaping (End) -> Void
    ) throws(Errno) {
        try socket.setNonblocking()
        self.loop = loop
        self.logger = logger
        self.onEnd = onEnd
        self.socket = SharedDescriptor(socket)
        session = Session(device: device, logger: logger)
        try watchSocket(for: .readable)
    }

    /// Whether the client replies to requests for guest memory that it mapped without a descriptor.
    public var servesMemory: Bool { session.phase == .ready && session.client.servesMemory }

    /// Ends the connection and closes the socket. The loop reports the end in its next turn.
    public func close() { end(.closedByServer) }

    /// Whether the socket is closed.
    public var isClosed: Bool { socket == nil }

    // MARK: - The loop

    private func watchSocket(for events: Readiness) throws(Errno) {
        guard events != watchedEvents, let socket else { return }
        watch = nil
        watchedEvents = events
        watch = try loop.watch(socket.descriptor, for: events) { [weak self] ready in
            self?.socketIsReady(ready)
        }
    }

    private func socketIsReady(_ ready: Readiness) {
        isInputPaused = false
        if ready.contains(.writable) { flush() }
        handleMessages()
        // A client that hung up may have sent messages before.
        if ready.contains(.readable) || ready.contains(.closed) { receive() }
    }

    private func resumeInput() {
        nextTurn = nil
        isInputPaused = false
        handleMessages()
    }

    func end(_ reason: End) {
        guard socket != nil else { return }
        watch = nil
        session.close()
        socket = nil
        input.removeAll()
        output = []
        nextTurn = loop.schedule(at: loop.now) { [self] in
            nextTurn = nil
            let body = onEnd
            onEnd = nil
            body?(reason)
        }
    }

    // MARK: - Messages

    /// Receives pending bytes and handles the messages that they complete.
    private func receive() {
        for _ in 0..<VFIOUserLimits.receivesPerTurn {
            guard let socket else { return }
            let received: ReceiveBuffer.Received
            do throws(Errno) {
                received = try input.receive(from: socket.descriptor)
            } catch {
                if error == .wouldBlock { return }
                return end(error == .connectionReset ? .clientDisconnected : .failed(error))
            }
            switch received {
            case .endOfStream: return end(.clientDisconnected)
            // The buffer is full only while the input is paused.
            case .full: return
            case .all, .some: handleMessages()
            }
            if received == .all || isInputPaused { return }
        }
    }

    /// Handles the messages that have been received completely.
    private func handleMessages() {
        while !isInputPaused, let header = input.firstHeader {
            guard header.size >= MessageHeader.size, header.size <= VFIOUserLimits.messageSize
            else {
                return end(.protocolViolation("\(header.command) with \(header.size) bytes"))
            }
            guard input.hasMessage(header) else { return }
            switch header.flags.type {
            case 0:
                if pendingAccess != nil, !session.canHandleDuringMemoryAccess(header.command) {
                    return pauseInput()
                }
                handleRequest(header)
            case MessageHeader.Flags.reply.type:
                input.consumeMessage(header) { payload, _ in receiveReply(header, payload) }
            default:
                return end(
                    .protocolViolation("\(header.command) with message type \(header.flags.type)"))
            }
        }
    }

    private func handleRequest(_ header: MessageHeader) {
        isHandlingRequest = true
        let result = input.consumeMessage(header) { payload, descriptors in
            if descriptors.isTruncated || descriptors.count > VFIOUserLimits.descriptors {
                session.refuseDescriptors(header, into: reply)
                return Session.Result.replied
            }
            return session.handle(header, payload, descriptors: &descriptors, into: reply)
        }
        isHandlingRequest = false
        send(reply)
        if case .refused(let reason) = result { end(.protocolViolation(reason)) }
    }

    /// Cancels the pending access, and leaves the unread messages for the next turn of the loop.
    private func pauseInput() {
        isInputPaused = true
        if nextTurn == nil {
            nextTurn = loop.schedule(at: loop.now) { [weak self] in self?.resumeInput() }
        }
    }

    // MARK: - Sending

    /// Sends a message. Bytes that the socket does not accept now are sent when it is writable.
    func send(_ message: MessageBuffer) {
        guard message.count > 0, let socket else { return }
        var sent = 0
        if output.isEmpty {
            do throws(Errno) {
                sent = try unsafe UnixSocket.send(message.bytes, to: socket.descriptor)
            } catch {
                if error != .wouldBlock { return endAfterSending(error) }
            }
        }
        guard sent < message.count else { return }
        guard output.count + message.count - sent <= VFIOUserLimits.outputQueue else {
            return end(.clientStoppedReading)
        }
        unsafe output.append(contentsOf: message.bytes[sent...])
        watchOutput()
    }

    /// Sends as many of the waiting bytes as the socket accepts.
    func flush() {
        guard !output.isEmpty, let socket else { return }
        var failure: Errno?
        let sent = unsafe output.withUnsafeBytes { bytes in
            do throws(Errno) {
                return try unsafe UnixSocket.send(bytes, to: socket.descriptor)
            } catch {
                if error != .wouldBlock { failure = error }
                return 0
            }
        }
        if let failure { return endAfterSending(failure) }
        output.removeFirst(sent)
        watchOutput()
    }

    private func endAfterSending(_ error: Errno) {
        end(
            error == .brokenPipe || error == .connectionReset
                ? .clientDisconnected : .failed(error))
    }

    private func watchOutput() {
        do throws(Errno) {
            try watchSocket(for: output.isEmpty ? .readable : [.readable, .writable])
        } catch {
            end(.failed(error))
        }
    }

    // MARK: - Requests to the client

    /// Sends a request to the client.
    ///
    /// - Parameters:
    ///   - command: the command in the header.
    ///   - payload: the size of the payload in bytes.
    ///   - body: appends the payload.
    /// - Returns: the ID that the reply will have.
    func sendRequest(
        _ command: Command, payload: Int, _ body: (MessageBuffer) -> Void
    ) -> UInt16 {
        let id = nextRequest
        nextRequest &+= 1
        request.removeAll()
        request.append(id)
        request.append(command.rawValue)
        request.append(UInt32(MessageHeader.size + payload))
        request.append(0 as UInt32)
        request.append(0 as UInt32)
        body(request)
        precondition(
            request.count == MessageHeader.size + payload, "\(request.count) bytes written")
        send(request)
        return id
    }

    /// Blocks until the socket is ready or the timeout has passed, then handles the messages
    /// received.
    ///
    /// - Throws: `ENOTCONN` if the connection has ended.
    func serve(timeout: Duration) throws(Errno) {
        guard let socket else { throw .socketNotConnected }
        let ready = try UnixSocket.wait(
            for: output.isEmpty ? .readable : [.readable, .writable], on: socket.descriptor,
            timeout: timeout)
        if ready.contains(.writable) { flush() }
        if ready.contains(.readable) || ready.contains(.closed) { receive() }
    }
}
