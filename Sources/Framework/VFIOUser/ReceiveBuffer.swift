// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// The received bytes of a connection that have not been consumed, as messages with their
/// descriptors.
@safe
final class ReceiveBuffer {
    private let storage: UnsafeMutableRawBufferPointer
    /// The range of the unconsumed bytes; it begins with the header of a message.
    private var unread = 0..<0
    /// The descriptors of messages in `unread`, in the order of the messages.
    private var descriptors: [MessageDescriptors] = []

    init() { unsafe storage = .allocate(byteCount: VFIOUserLimits.receiveBuffer, alignment: 16) }

    deinit { unsafe storage.deallocate() }

    /// Discards all bytes and closes all descriptors.
    func removeAll() {
        unread = 0..<0
        descriptors = []
    }

    // MARK: - Receiving

    /// The result of ``receive(from:)``.
    enum Received {
        /// The client has closed its end.
        case endOfStream
        /// The buffer is full.
        case full
        /// All pending bytes were received.
        case all
        /// Bytes were received, and more may be pending.
        case some
    }

    /// Receives pending bytes and descriptors with one recvmsg(2).
    ///
    /// - Throws: `EAGAIN` if nothing is pending, otherwise the errno of recvmsg(2).
    func receive(from socket: borrowing OwnedDescriptor) throws(Errno) -> Received {
        makeRoom()
        let room = unsafe UnsafeMutableRawBufferPointer(rebasing: storage[unread.upperBound...])
        guard room.count > 0 else { return .full }
        var received = DescriptorList()
        let count = try unsafe UnixSocket.receive(
            into: room, descriptors: &received, from: socket)
        guard count > 0 else { return .endOfStream }
        let start = unread.upperBound
        unread = unread.lowerBound..<start + count
        let hasDescriptors = !received.isEmpty || received.isTruncated
        if hasDescriptors { assign(received, receivedAt: start) }
        // A call that fills less than the room has received all there is, unless descriptors ended
        // it early.
        return count < room.count && !hasDescriptors ? .all : .some
    }

    /// Moves a partial message to the beginning of the buffer if its end would not fit.
    private func makeRoom() {
        if unread.isEmpty { return removeAll() }
        guard unsafe storage.count - unread.lowerBound < VFIOUserLimits.messageSize else { return }
        let count = unread.count
        unsafe storage.copyMemory(
            from: UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(storage)[unread]))
        for message in descriptors { message.offset -= unread.lowerBound }
        unread = 0..<count
    }

    /// Assigns the descriptors of one recvmsg(2) to the message they were sent with.
    ///
    /// The received bytes may begin with earlier messages, but they end within the message that was
    /// sent with the descriptors: the last one that begins in these bytes. If a client has sent
    /// several messages with one call, it is the last one whose command takes descriptors. If no
    /// message begins in these bytes, it is the one that is being received.
    ///
    /// - Parameter start: the offset of the received bytes in the buffer.
    private func assign(_ received: consuming DescriptorList, receivedAt start: Int) {
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
        guard let previous = descriptors.last, previous.offset == target else {
            descriptors.append(MessageDescriptors(received, at: target))
            return
        }
        if received.isTruncated { previous.list.isTruncated = true }
        for index in 0..<received.count {
            guard previous.list.count < VFIOUserLimits.descriptors else {
                // A client may spread a message over many calls: the excess is closed here.
                previous.list.isTruncated = true
                return
            }
            if let descriptor = received.take(index) { previous.list.append(descriptor) }
        }
    }

    // MARK: - Messages

    /// The header of the first message; `nil` if it has not been received completely.
    var firstHeader: MessageHeader? { header(at: unread.lowerBound) }

    /// Whether all bytes of the first message have been received.
    func hasMessage(_ header: MessageHeader) -> Bool { unread.count >= Int(header.size) }

    /// Consumes the first message and calls `body` with its payload.
    ///
    /// - Parameters:
    ///   - header: the header of the message, whose size is valid and has been received.
    ///   - body: may receive further bytes only after it has read the payload.
    func consumeMessage<Result>(
        _ header: MessageHeader, _ body: (Span<UInt8>, inout DescriptorList) -> Result
    ) -> Result {
        let start = unread.lowerBound
        let end = start + Int(header.size)
        unread = end..<unread.upperBound
        var taken = descriptors.isEmpty ? DescriptorList() : takeDescriptors(at: start)
        return withBytes(start + MessageHeader.size..<end) { payload in body(payload, &taken) }
    }

    /// Removes and returns the descriptors of the message at an offset, and closes those of earlier
    /// messages.
    private func takeDescriptors(at offset: Int) -> DescriptorList {
        var taken = DescriptorList()
        while let first = descriptors.first, first.offset <= offset {
            if first.offset == offset { swap(&taken, &first.list) }
            descriptors.removeFirst()
        }
        return taken
    }

    private func header(at offset: Int) -> MessageHeader? {
        guard unread.upperBound - offset >= MessageHeader.size else { return nil }
        return withBytes(offset..<offset + MessageHeader.size) { MessageHeader($0) }
    }

    private func withBytes<Result>(
        _ range: Range<Int>, _ body: (Span<UInt8>) -> Result
    ) -> Result {
        let bytes = unsafe UnsafeRawBufferPointer(rebasing: storage[range])
        return unsafe bytes.withMemoryRebound(to: UInt8.self) { unsafe body($0.span) }
    }
}
