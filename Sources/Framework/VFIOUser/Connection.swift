// SPDX-License-Identifier: Apache-2.0

public import Logging
public import Platform
public import SystemPackage

/// One client on one socket: bytes and descriptors become messages, messages are answered.
///
/// It watches its socket on the event loop and answers by itself. The device reaches guest memory
/// that has no descriptor through ``readMemory(into:at:)`` and ``writeMemory(_:at:)``.
@safe
public final class Connection {
    /// Why a connection ended.
    public enum End: Equatable, Sendable {
        /// The client closed it, or died.
        case clientLeft
        /// The client broke the protocol in a way after which the stream means nothing.
        case protocolViolation(String)
        /// The client no longer reads what it is sent.
        case clientStoppedReading
        /// The socket failed.
        case failed(Errno)
        /// ``close()``.
        case closedByServer
    }

    /// Descriptors, and where in `input` the message begins that they came with.
    private final class Arrival {
        var descriptors: DescriptorList
        var place: Int

        init(_ descriptors: consuming DescriptorList, place: Int) {
            self.descriptors = descriptors
            self.place = place
        }
    }

    /// A class, so that the descriptor can be borrowed while other state changes, and outlives a call
    /// that ends the connection.
    private final class OpenSocket {
        let descriptor: OwnedDescriptor

        init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }
    }

    let loop: any EventLoop
    let session: Session
    let logger: Logger
    /// The access to guest memory that waits for the client's answer.
    var access: MemoryAccessInProgress?
    /// The place of the data in the client's memory messages, once known.
    var memoryLayout: MemoryMessageLayout?
    /// The number of the last request that was given up for lack of an answer. Until the answer
    /// comes the client is taken for unable to give any.
    var overdueRequest: UInt16?
    var nextRequest: UInt16 = 1
    /// Shorter in tests.
    var memoryAccessTime = VFIOUserLimits.memoryAccessTime
    /// Until when the device may wait in accesses to guest memory, all of those that it makes before
    /// the loop turns again: nobody else is served meanwhile.
    var accessDeadline: Duration?
    var accessDeadlineEnd: Watch?
    /// A request has arrived that can only be carried out when the device is at rest. It and all
    /// behind it stay in the buffer until the loop runs again.
    private(set) var mustRest = false
    /// The device is answering a request, whose reply is half written.
    private(set) var isAnswering = false

    private var socket: OpenSocket?
    private var watch: Watch?
    private var watchedEvents: Readiness = []
    private var resumption: Watch?
    private var ended: ((End) -> Void)?

    /// Received bytes; those in `unread` are not consumed yet.
    private let input: UnsafeMutableRawBufferPointer
    private var unread = 0..<0
    /// Descriptors whose messages are among the unread bytes.
    private var arrivals: [Arrival] = []

    private let reply = MessageBuffer(capacity: VFIOUserLimits.messageSize)
    private let request = MessageBuffer(capacity: VFIOUserLimits.messageSize)
    /// What the socket did not take at once.
    private var output: [UInt8] = []

    /// Serves `device` to the client at the other end of `socket`, a connected stream socket.
    ///
    /// - Parameter ended: called once, on the loop, never from within another function of this
    ///   class. Then the socket is closed, and the device still has the client's memory and eventfds.
    public init(
        socket: consuming OwnedDescriptor, device: any VFIODevice, loop: any EventLoop,
        logger: Logger,
        whenEnded ended: @escaping (End) -> Void
    ) throws(Errno) {
        try socket.setNonblocking()
        self.loop = loop
        self.logger = logger
        self.ended = ended
        self.socket = OpenSocket(socket)
        session = Session(device: device, logger: logger)
        unsafe input = .allocate(byteCount: VFIOUserLimits.receiveBuffer, alignment: 16)
        try watchSocket(for: .readable)
    }

    deinit { unsafe input.deallocate() }

    /// Whether the client answers requests for guest memory that it gave without a descriptor.
    public var servesMemory: Bool { session.phase == .ready && session.client.servesMemory }

    /// Closes the socket. The end is told on the loop afterwards.
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
        mustRest = false
        if ready.contains(.writable) { flush() }
        process()
        // A peer that hung up may have left messages to be read first.
        if ready.contains(.readable) || ready.contains(.closed) { receive() }
    }

    /// Continues with what had to wait for the device to come to rest.
    private func resume() {
        resumption = nil
        mustRest = false
        process()
    }

    func end(_ reason: End) {
        guard socket != nil else { return }
        logger.debug("the connection ends", metadata: ["reason": "\(reason)"])
        watch = nil
        session.close()
        socket = nil
        arrivals = []
        unread = 0..<0
        output = []
        resumption = loop.schedule(at: loop.now) { [self] in
            resumption = nil
            let body = ended
            ended = nil
            body?(reason)
        }
    }

    // MARK: - Receiving

    /// Receives what there is and carries it out.
    func receive() {
        for _ in 0..<VFIOUserLimits.receiveRounds {
            guard let socket else { return }
            makeRoom()
            let room = unsafe UnsafeMutableRawBufferPointer(rebasing: input[unread.upperBound...])
            // Full only while requests wait for the device to rest.
            guard room.count > 0 else { return }
            var arrived = DescriptorList()
            let count: Int
            do throws(Errno) {
                count = try unsafe UnixSocket.receive(
                    into: room, descriptors: &arrived, from: socket.descriptor)
            } catch {
                if error == .wouldBlock { return }
                return end(error == .connectionReset ? .clientLeft : .failed(error))
            }
            guard count > 0 else { return end(.clientLeft) }
            let start = unread.upperBound
            unread = unread.lowerBound..<start + count
            let hadDescriptors = !arrived.isEmpty || arrived.isTruncated
            if hadDescriptors { keep(arrived, receivedFrom: start) }
            process()
            // Less than there was room for was all there is, unless descriptors cut it short.
            if mustRest || (count < room.count && !hadDescriptors) { return }
        }
    }

    /// Moves a partial message to the front when it could not be completed where it is.
    private func makeRoom() {
        if unread.isEmpty {
            unread = 0..<0
            arrivals = []
            return
        }
        guard unsafe input.count - unread.lowerBound < VFIOUserLimits.messageSize else { return }
        let count = unread.count
        unsafe input.copyMemory(
            from: UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(input)[unread]))
        for arrival in arrivals { arrival.place -= unread.lowerBound }
        unread = 0..<count
    }

    /// Decides which message the descriptors of one `recvmsg` belong to.
    ///
    /// The kernel puts bytes before a message with descriptors into the same answer, but none behind
    /// it: so they belong to the last message that begins here. Only if a client joins messages
    /// itself can that be wrong; then the last that can use descriptors is meant. If no message
    /// begins here they belong to the one that is being received.
    private func keep(_ arrived: consuming DescriptorList, receivedFrom start: Int) {
        var place = unread.lowerBound
        var target = unread.lowerBound
        var targetTakes = false
        while place < unread.upperBound {
            let header = header(at: place)
            let takes = header.map { $0.command == .dmaMap || $0.command == .deviceSetIRQs }
            if place >= start || place == unread.lowerBound, takes ?? true || !targetTakes {
                target = place
                targetTakes = takes ?? true
            }
            guard let header, header.size >= MessageHeader.size,
                Int(header.size) <= unread.upperBound - place
            else { break }
            place += Int(header.size)
        }
        guard let same = arrivals.last, same.place == target else {
            return arrivals.append(Arrival(arrived, place: target))
        }
        if arrived.isTruncated { same.descriptors.isTruncated = true }
        for index in 0..<arrived.count {
            guard same.descriptors.count < VFIOUserLimits.descriptors else {
                // However a message is cut, the rest of its descriptors is closed here.
                same.descriptors.isTruncated = true
                return
            }
            if let descriptor = arrived.take(index) { same.descriptors.append(descriptor) }
        }
    }

    /// The descriptors of the message at a place. What belonged to earlier messages is closed.
    private func takeDescriptors(at place: Int) -> DescriptorList {
        var taken = DescriptorList()
        while let first = arrivals.first, first.place <= place {
            if first.place == place { swap(&taken, &first.descriptors) }
            arrivals.removeFirst()
        }
        return taken
    }

    private func header(at place: Int) -> MessageHeader? {
        guard unread.upperBound - place >= MessageHeader.size else { return nil }
        return withInput(place..<place + MessageHeader.size) { MessageHeader($0) }
    }

    private func withInput<Result>(
        _ range: Range<Int>, _ body: (Span<UInt8>) -> Result
    ) -> Result {
        let bytes = unsafe UnsafeRawBufferPointer(rebasing: input[range])
        return unsafe bytes.withMemoryRebound(to: UInt8.self) { unsafe body($0.span) }
    }

    // MARK: - Messages

    /// Carries out the whole messages that have been received.
    private func process() {
        while !mustRest, let header = header(at: unread.lowerBound) {
            guard header.size >= MessageHeader.size, header.size <= VFIOUserLimits.messageSize
            else {
                return end(.protocolViolation("a message of \(header.size) bytes"))
            }
            let start = unread.lowerBound
            let size = Int(header.size)
            guard unread.count >= size else { return }
            switch header.flags.type {
            case 0:
                if access != nil, !session.canHandleDuringMemoryAccess(header.command) {
                    return restFirst()
                }
                unread = start + size..<unread.upperBound
                carryOut(header, at: start)
            case MessageHeader.Flags.reply.type:
                unread = start + size..<unread.upperBound
                _ = takeDescriptors(at: start)
                withInput(start + MessageHeader.size..<start + size) { payload in
                    receiveReply(header, payload)
                }
            default:
                return end(.protocolViolation("a message of type \(header.flags.type)"))
            }
        }
    }

    private func carryOut(_ header: MessageHeader, at place: Int) {
        var taken = arrivals.isEmpty ? DescriptorList() : takeDescriptors(at: place)
        if taken.isTruncated || taken.count > VFIOUserLimits.descriptors {
            session.refuseDescriptors(header, into: reply)
            return send(reply)
        }
        let payload = place + MessageHeader.size..<place + Int(header.size)
        isAnswering = true
        defer { isAnswering = false }
        let disposition = withInput(payload) { payload in
            session.handle(header, payload, descriptors: &taken, into: reply)
        }
        switch disposition {
        case .answered: send(reply)
        case .refused(let reason):
            send(reply)
            end(.protocolViolation(reason))
        }
    }

    /// Gives up the access in progress and leaves the rest of the input for the next turn.
    private func restFirst() {
        mustRest = true
        if resumption == nil {
            resumption = loop.schedule(at: loop.now) { [weak self] in self?.resume() }
        }
    }

    // MARK: - Sending

    /// Sends a message with one system call; what the socket does not take waits.
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

    /// Sends what waits, as far as the socket takes it.
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
        end(error == .brokenPipe || error == .connectionReset ? .clientLeft : .failed(error))
    }

    private func watchOutput() {
        do throws(Errno) {
            try watchSocket(for: output.isEmpty ? .readable : [.readable, .writable])
        } catch {
            end(.failed(error))
        }
    }

    // MARK: - Requests of our own

    /// Sends a request that `body` writes behind the header.
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

    /// Serves the client until the socket has something more or the time is over.
    func serve(atMost limit: Duration) throws(Errno) {
        guard let socket else { throw .socketNotConnected }
        let ready = try UnixSocket.wait(
            for: output.isEmpty ? .readable : [.readable, .writable], on: socket.descriptor,
            timeout: limit)
        if ready.contains(.writable) { flush() }
        if ready.contains(.readable) || ready.contains(.closed) { receive() }
    }
}
