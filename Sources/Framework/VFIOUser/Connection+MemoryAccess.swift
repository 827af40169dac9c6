// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
public import SystemPackage

/// The layout of DMA_READ and DMA_WRITE messages.
///
/// In the protocol document the count has 64 bits and the data begins at byte 32. In QEMU's
/// messages the count has 32 bits and the data begins at byte 28, but the size of the message is
/// the document's: four bytes of padding follow the data.
enum MemoryMessageLayout: Equatable {
    case document, qemu

    /// The offset of the data in a message, in bytes.
    var dataOffset: Int { self == .document ? 32 : 28 }
}

/// A DMA_READ or DMA_WRITE that waits for its reply.
@safe
struct PendingMemoryAccess {
    enum State {
        case waiting
        case done
        case failed(Errno)
    }

    /// The ID of the request.
    let id: UInt16
    /// The buffer for the data of a read; `nil` for a write and for the probe of the layout.
    let destination: UnsafeMutableRawBufferPointer?
    var state = State.waiting
    /// Whether the data of a read differs between the layouts, and the layout is unknown.
    var isAmbiguous = false
}

// Specification: the protocol document's sections "VFIO_USER_DMA_READ" and "VFIO_USER_DMA_WRITE".
extension Connection {
    /// Reads guest memory with DMA_READ, and blocks until the client has replied. Requests of the
    /// client are handled meanwhile.
    ///
    /// - Throws: `ENOTSUP` if the client serves no memory, `ETIMEDOUT` if it does not reply in
    ///   time, `ECANCELED` if it has sent DEVICE_RESET, which is handled after the access,
    ///   `ENOTCONN` if it is disconnected, `EBUSY` within another access or while a request is
    ///   handled, `EIO` if the reply is malformed, or the errno of the client's reply.
    public func readMemory(
        into bytes: UnsafeMutableRawBufferPointer, at address: UInt64
    ) throws(Errno) {
        try forEachMessage(count: bytes.count) { (range, deadline) throws(Errno) in
            let start = address &+ UInt64(range.lowerBound)
            let target = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[range])
            if try unsafe read(into: target, at: start, until: deadline) == .ambiguous {
                try probeLayout(at: start, until: deadline)
                _ = try unsafe read(into: target, at: start, until: deadline)
            }
        }
    }

    /// Writes guest memory with DMA_WRITE, and blocks until the client has replied. Throws as
    /// ``readMemory(into:at:)`` does.
    public func writeMemory(
        _ bytes: UnsafeRawBufferPointer, at address: UInt64
    ) throws(Errno) {
        try forEachMessage(count: bytes.count) { (range, deadline) throws(Errno) in
            let start = address &+ UInt64(range.lowerBound)
            if memoryLayout == nil { try probeLayout(at: start, until: deadline) }
            let layout = memoryLayout ?? .document
            let id = sendRequest(.dmaWrite, payload: 16 + range.count) { request in
                request.append(start)
                request.append(UInt32(range.count))
                if layout == .document { request.append(0 as UInt32) }
                unsafe request.append(UnsafeRawBufferPointer(rebasing: bytes[range]))
                if layout == .qemu { request.append(0 as UInt32) }
            }
            _ = try unsafe wait(
                for: PendingMemoryAccess(id: id, destination: nil), until: deadline)
        }
    }

    /// The deadline of the accesses in this turn of the event loop.
    private func deadlineOfTurn() -> Duration {
        if let accessDeadline { return accessDeadline }
        let deadline = loop.now + memoryAccessTimeout
        accessDeadline = deadline
        accessDeadlineReset = loop.schedule(at: loop.now) { [weak self] in
            self?.accessDeadline = nil
        }
        return deadline
    }

    /// Calls `body` with the parts of a range that fit one message each, and with the deadline.
    private func forEachMessage(
        count: Int, _ body: (Range<Int>, _ deadline: Duration) throws(Errno) -> Void
    ) throws(Errno) {
        guard servesMemory else { throw isClosed ? .socketNotConnected : .notSupported }
        guard pendingAccess == nil, !isHandlingRequest else { throw .resourceBusy }
        if isInputPaused { throw .canceled }
        let deadline = deadlineOfTurn()
        if timedOutRequest != nil || deadline <= loop.now { throw .timedOut }
        let longest = Int(
            min(session.client.maxDataTransfer, UInt64(VFIOUserLimits.dataTransfer)))
        var start = 0
        while start < count {
            let end = min(start + longest, count)
            try body(start..<end, deadline)
            start = end
        }
    }

    private enum ReadResult { case done, ambiguous }

    private func read(
        into bytes: UnsafeMutableRawBufferPointer, at address: UInt64, until deadline: Duration
    ) throws(Errno) -> ReadResult {
        let id = sendRequest(.dmaRead, payload: 16) { request in
            request.append(address)
            request.append(UInt64(bytes.count))
        }
        let access = try unsafe wait(
            for: PendingMemoryAccess(id: id, destination: bytes), until: deadline)
        return access.isAmbiguous ? .ambiguous : .done
    }

    /// Determines the layout of the client's messages.
    ///
    /// The probe reads 2^32 bytes, more than any client permits. A client that uses all 64 bits of
    /// the count refuses it; QEMU uses the lower 32, which are 0, and succeeds.
    private func probeLayout(at address: UInt64, until deadline: Duration) throws(Errno) {
        let id = sendRequest(.dmaRead, payload: 16) { request in
            request.append(address)
            request.append(1 << 32 as UInt64)
        }
        do throws(Errno) {
            _ = try unsafe wait(
                for: PendingMemoryAccess(id: id, destination: nil), until: deadline)
            memoryLayout = .qemu
        } catch {
            switch error {
            case .timedOut, .canceled, .socketNotConnected: throw error
            default: memoryLayout = .document
            }
        }
        let offset = (memoryLayout ?? .document).dataOffset
        logger.debug("the client's DMA_READ and DMA_WRITE have their data at byte \(offset)")
    }

    /// Waits for the reply to the request that was sent last.
    private func wait(
        for started: PendingMemoryAccess, until deadline: Duration
    ) throws(Errno) -> PendingMemoryAccess {
        pendingAccess = started
        defer { pendingAccess = nil }
        while true {
            if isClosed { throw .socketNotConnected }
            switch pendingAccess?.state {
            case .done: return pendingAccess ?? started
            case .failed(let error): throw error
            case .waiting, nil: break
            }
            if isInputPaused { throw .canceled }
            let left = deadline - loop.now
            guard left > .zero else {
                timedOutRequest = started.id
                logger.warning(
                    """
                    the client has not replied to a request for guest memory within \
                    \(memoryAccessTimeout); accesses to memory without a file descriptor fail until \
                    it does
                    """)
                throw .timedOut
            }
            try serve(timeout: left)
        }
    }

    /// Handles a reply of the client; one to a request that has timed out or was cancelled is
    /// dropped.
    func receiveReply(_ header: MessageHeader, _ payload: Span<UInt8>) {
        if header.id == timedOutRequest { timedOutRequest = nil }
        guard var access = pendingAccess, header.id == access.id else {
            logger.debug("dropped a late reply to \(header.command)")
            return
        }
        if header.flags.contains(.error) {
            let error = Errno(rawValue: CInt(truncatingIfNeeded: header.error))
            // These errnos have another meaning in `readMemory`.
            switch error {
            case .timedOut, .canceled, .socketNotConnected: access.state = .failed(.ioError)
            default: access.state = .failed(header.error == 0 ? .ioError : error)
            }
        } else if let destination = unsafe access.destination {
            unsafe copyData(payload, into: destination, &access)
        } else {
            access.state = .done
        }
        pendingAccess = access
    }

    /// Copies the data of a DMA_READ reply, and determines the layout from it if possible.
    private func copyData(
        _ payload: Span<UInt8>, into destination: UnsafeMutableRawBufferPointer,
        _ access: inout PendingMemoryAccess
    ) {
        let count = destination.count
        guard payload.count >= 16 + count else {
            access.state = .failed(.ioError)
            return
        }
        // Offsets in the payload are 16 less than those in the message. At byte 12 the document has
        // the upper half of the count, which is 0, and QEMU the first data; at the end the document
        // has the last data, and QEMU padding, which is 0.
        if payload.littleEndian(UInt32.self, at: 12) != 0 {
            memoryLayout = .qemu
        } else if payload.littleEndian(UInt32.self, at: 12 + count) != 0 {
            memoryLayout = .document
        } else if memoryLayout == nil {
            // Data of zeroes is the same in both layouts.
            access.isAmbiguous = (12..<16 + count).contains { payload[$0] != 0 }
        }
        let start = (memoryLayout ?? .document).dataOffset - MessageHeader.size
        unsafe payload.extracting(start..<start + count).withUnsafeBytes { bytes in
            unsafe destination.copyMemory(from: bytes)
        }
        access.state = .done
    }
}
