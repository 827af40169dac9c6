// SPDX-License-Identifier: Apache-2.0

public import Logging
public import Platform
public import SystemPackage

/// The connection to one client: receives its messages and descriptors, has the ``Session`` handle
/// them, and sends the replies.
///
/// It watches its socket on the event loop. The device accesses guest memory without a descriptor
/// through ``readMemory(into:at:)`` and ``writeMemory(_:at:)``.
@safe
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
    /// A variable for tests, which use a shorter timeout.
    var memoryAccessTimeout = VFIOUserLimits.memoryAccessTimeout
    /// The time at which accesses to guest memory time out, set by the first access in a turn of the
    /// event loop: the loop serves nothing else meanwhile.
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

    /// The receive buffer. The bytes in `unread` have not been consumed.
    private let input: UnsafeMutableRawBufferPointer
    private var unread = 0..<0
    /// The descriptors of messages in `unread`, in the order of the messages.
    private var receivedDescriptors: [MessageDescriptors] = []

    private let reply = MessageBuffer(capacity: VFIOUserLimits.messageSize)
    private let request = MessageBuffer(capacity: VFIOUserLimits.messageSize)
    /// The bytes that the socket has not accepted yet.
    private var output: [UInt8] = []

    /// Serves a device to the client at the other end of a connected stream socket.
    ///
    /// - Parameters:
    ///   - socket: owned, and closed when the connection ends.
    ///   - device: handles the client's requests. When the connection ends it still has the client's
    ///     memory and eventfds.
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
        unsafe input = .allocate(byteCount: VFIOUserLimits.receiveBuffer, alignment: 16)
        try watchSocket(for: .readable)
    }

    deinit { unsafe input.deallocate() }

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
        // A peer that hung up may have sent messages before.
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
        receivedDescriptors = []
        unread = 0..<0
        output = []
        nextTurn = loop.schedule(at: loop.now) { [self] in
            nextTurn = nil
            let body = onEnd
            onEnd = nil
            body?(reason)
        }
    }

    // MARK: - Receiving

    /// Receives pending bytes and handles the messages that they complete.
    func receive() {
        for _ in 0..<VFIOUserLimits.receivesPerTurn {
            guard let socket else { return }
            makeRoom()
            let room = unsafe UnsafeMutableRawBufferPointer(rebasing: input[unread.upperBound...])
            // The buffer is full only while the input is paused.
            guard room.count > 0 else { return }
            var descriptors = DescriptorList()
            let count: Int
            do throws(Errno) {
                count = try unsafe UnixSocket.receive(
                    into: room, descriptors: &descriptors, from: socket.descriptor)
            } catch {
                if error == .wouldBlock { return }
                return end(error == .connectionReset ? .clientDisconnected : .failed(error))
            }
            guard count > 0 else { return end(.clientDisconnected) }
            let start = unread.upperBound
            unread = unread.lowerBound..<start + count
            let hasDescriptors = !descriptors.isEmpty || descriptors.isTruncated
            if hasDescriptors { assign(descriptors, receivedAt: start) }
            handleMessages()
            // A call that fills less than the room has received all there is, unless descriptors ended
            // it early.
            if isInputPaused || (count < room.count && !hasDescriptors) { return }
        }
    }

    /// Moves a partial message to the beginning of the buffer if its end would not fit.
    private func makeRoom() {
        if unread.isEmpty {
            unread = 0..<0
            receivedDescriptors = []
            return
        }
        guard unsafe input.count - unread.lowerBound < VFIOUserLimits.messageSize else { return }
        let count = unread.count
        unsafe input.copyMemory(
            from: UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(input)[unread]))
        for descriptors in receivedDescriptors { descriptors.offset -= unread.lowerBound }
        unread = 0..<count
    }

    /// Assigns the descriptors of one recvmsg(2) to the message they were sent with.
    ///
    /// The received bytes may begin with earlier messages but end with the message that was sent with
    /// the descriptors, so they belong to the last message that begins in these bytes. A client may
    /// also send several messages with one call; then they belong to the last message whose command
    /// takes descriptors. If no message begins in these bytes they belong to the one that is being
    /// received.
    ///
    /// - Parameter start: the offset of the received bytes in the buffer.
    private func assign(_ descriptors: consuming DescriptorList, receivedAt start: Int) {
        var offset = unread.lowerBound
        var target = unread.lowerBound
        var targetTakesDescriptors = false
        while offset < unread.upperBound {
            let header = header(at: offset)
            // A command that has not been received yet may take descriptors.
            let takesDescriptors =
                header.map { $0.command == .dmaMap || $0.command == .deviceSetIRQs } ?? true
            if offset >= start || offset == unread.lowerBound,
                takesDescriptors || !targetTakesDescriptors
            {
                target = offset
                targetTakesDescriptors = takesDescriptors
            }
            guard let header, header.size >= MessageHeader.size,
                Int(header.size) <= unread.upperBound - offset
            else { break }
            offset += Int(header.size)
        }
        guard let previous = receivedDescriptors.last, previous.offset == target else {
            receivedDescriptors.append(MessageDescriptors(descriptors, at: target))
            return
        }
        if descriptors.isTruncated { previous.list.isTruncated = true }
        for index in 0..<descriptors.count {
            guard previous.list.count < VFIOUserLimits.descriptors else {
                // A client may spread a message over many calls: the excess is closed here.
                previous.list.isTruncated = true
                return
            }
            if let descriptor = descriptors.take(index) { previous.list.append(descriptor) }
        }
    }

    /// Removes and returns the descriptors of the message at an offset, and closes those of earlier
    /// messages.
    private func takeDescriptors(at offset: Int) -> DescriptorList {
        var taken = DescriptorList()
        while let first = receivedDescriptors.first, first.offset <= offset {
            if first.offset == offset { swap(&taken, &first.list) }
            receivedDescriptors.removeFirst()
        }
        return taken
    }

    /// The header at an offset of the buffer; `nil` if it has not been received completely.
    private func header(at offset: Int) -> MessageHeader? {
        guard unread.upperBound - offset >= MessageHeader.size else { return nil }
        return withInput(offset..<offset + MessageHeader.size) { MessageHeader($0) }
    }

    private func withInput<Result>(
        _ range: Range<Int>, _ body: (Span<UInt8>) -> Result
    ) -> Result {
        let bytes = unsafe UnsafeRawBufferPointer(rebasing: input[range])
        return unsafe bytes.withMemoryRebound(to: UInt8.self) { unsafe body($0.span) }
    }

    // MARK: - Messages

    /// Handles the messages that have been received completely.
    private func handleMessages() {
        while !isInputPaused, let header = header(at: unread.lowerBound) {
            guard header.size >= MessageHeader.size, header.size <= VFIOUserLimits.messageSize
            else {
                return end(.protocolViolation("\(header.command) with \(header.size) bytes"))
            }
            let start = unread.lowerBound
            let size = Int(header.size)
            guard unread.count >= size else { return }
            switch header.flags.type {
            case 0:
                if pendingAccess != nil, !session.canHandleDuringMemoryAccess(header.command) {
                    return pauseInput()
                }
                unread = start + size..<unread.upperBound
                handleRequest(header, at: start)
            case MessageHeader.Flags.reply.type:
                unread = start + size..<unread.upperBound
                _ = takeDescriptors(at: start)
                withInput(start + MessageHeader.size..<start + size) { payload in
                    receiveReply(header, payload)
                }
            default:
                return end(
                    .protocolViolation("\(header.command) with message type \(header.flags.type)"))
            }
        }
    }

    private func handleRequest(_ header: MessageHeader, at offset: Int) {
        var descriptors =
            receivedDescriptors.isEmpty ? DescriptorList() : takeDescriptors(at: offset)
        if descriptors.isTruncated || descriptors.count > VFIOUserLimits.descriptors {
            session.refuseDescriptors(header, into: reply)
            return send(reply)
        }
        let payload = offset + MessageHeader.size..<offset + Int(header.size)
        isHandlingRequest = true
        defer { isHandlingRequest = false }
        let result = withInput(payload) { payload in
            session.handle(header, payload, descriptors: &descriptors, into: reply)
        }
        switch result {
        case .replied: send(reply)
        case .refused(let reason):
            send(reply)
            end(.protocolViolation(reason))
        }
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

    /// Blocks until the socket is ready, then handles the messages received, or until the timeout.
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
