// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
public import SystemPackage

/// Where the data lies in DMA_READ and DMA_WRITE messages.
///
/// The protocol document has a count of 64 bits, so that data begins at byte 32. QEMU has a count of
/// 32 bits and takes data from byte 28 on, but measures messages as if it began at 32: four bytes of
/// padding are at the end of each.
enum MemoryMessageLayout: Equatable {
    case document, qemu

    var dataOffset: Int { self == .document ? 32 : 28 }
}

/// An access to guest memory that waits for its answer.
@safe
struct MemoryAccessInProgress {
    enum Outcome {
        case waiting
        case done
        case refused(Errno)
    }

    let id: UInt16
    /// Where the data of a read goes; `nil` for a write or a question about the layout.
    let destination: UnsafeMutableRawBufferPointer?
    var outcome = Outcome.waiting
    /// Whether the answer to a read could be meant in either layout.
    var isAmbiguous = false
}

// Specification: the protocol document's sections "VFIO_USER_DMA_READ" and "VFIO_USER_DMA_WRITE".
extension Connection {
    /// Reads guest memory by asking the client, and waits for the answer, serving the client's
    /// requests meanwhile.
    ///
    /// - Throws: `ENOTSUP` if the client serves no memory, `ETIMEDOUT` if it does not answer,
    ///   `ECANCELED` if it asked for something that can only be done when the device has come to
    ///   rest, `ENOTCONN` if it is gone, or the errno with which it refused.
    public func readMemory(
        into bytes: UnsafeMutableRawBufferPointer, at address: UInt64
    ) throws(Errno) {
        try inPieces(count: bytes.count) { (piece, deadline) throws(Errno) in
            let place = address &+ UInt64(piece.lowerBound)
            let target = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[piece])
            if try unsafe readPiece(into: target, at: place, until: deadline) == .ambiguous {
                try determineLayout(at: place, until: deadline)
                _ = try unsafe readPiece(into: target, at: place, until: deadline)
            }
        }
    }

    /// Writes guest memory by asking the client; otherwise like ``readMemory(into:at:)``.
    public func writeMemory(
        _ bytes: UnsafeRawBufferPointer, at address: UInt64
    ) throws(Errno) {
        try inPieces(count: bytes.count) { (piece, deadline) throws(Errno) in
            let place = address &+ UInt64(piece.lowerBound)
            if memoryLayout == nil { try determineLayout(at: place, until: deadline) }
            let layout = memoryLayout ?? .document
            let id = sendRequest(.dmaWrite, payload: 16 + piece.count) { request in
                request.append(place)
                request.append(UInt32(piece.count))
                if layout == .document { request.append(0 as UInt32) }
                unsafe request.append(UnsafeRawBufferPointer(rebasing: bytes[piece]))
                if layout == .qemu { request.append(0 as UInt32) }
            }
            _ = try unsafe wait(
                for: MemoryAccessInProgress(id: id, destination: nil), until: deadline)
        }
    }

    /// - Returns: until when the access may wait.
    private func startAccess() -> Duration {
        if let accessDeadline { return accessDeadline }
        let deadline = loop.now + memoryAccessTime
        accessDeadline = deadline
        accessDeadlineEnd = loop.schedule(at: loop.now) { [weak self] in
            self?.accessDeadline = nil
        }
        return deadline
    }

    /// Calls `body` with ranges that are short enough for one message, and until when it may wait.
    private func inPieces(
        count: Int, _ body: (Range<Int>, _ deadline: Duration) throws(Errno) -> Void
    ) throws(Errno) {
        guard servesMemory else { throw isClosed ? .socketNotConnected : .notSupported }
        // Neither within another access nor while a request is answered.
        guard access == nil, !isAnswering else { throw .resourceBusy }
        if mustRest { throw .canceled }
        let deadline = startAccess()
        if overdueRequest != nil || deadline <= loop.now { throw .timedOut }
        let longest = Int(min(session.client.dataTransfer, UInt64(VFIOUserLimits.dataTransfer)))
        var start = 0
        while start < count {
            let end = min(start + longest, count)
            try body(start..<end, deadline)
            start = end
        }
    }

    private enum ReadOutcome { case done, ambiguous }

    private func readPiece(
        into bytes: UnsafeMutableRawBufferPointer, at address: UInt64, until deadline: Duration
    ) throws(Errno) -> ReadOutcome {
        let id = sendRequest(.dmaRead, payload: 16) { request in
            request.append(address)
            request.append(UInt64(bytes.count))
        }
        let access = try unsafe wait(
            for: MemoryAccessInProgress(id: id, destination: bytes), until: deadline)
        return access.isAmbiguous ? .ambiguous : .done
    }

    /// Finds out where the client's data lies.
    ///
    /// A read of 2^32 bytes, more than any client allows, is refused by one that sees all 64 bits
    /// of the count. QEMU sees the lower half, zero, and succeeds.
    private func determineLayout(at address: UInt64, until deadline: Duration) throws(Errno) {
        let id = sendRequest(.dmaRead, payload: 16) { request in
            request.append(address)
            request.append(1 << 32 as UInt64)
        }
        do throws(Errno) {
            _ = try unsafe wait(
                for: MemoryAccessInProgress(id: id, destination: nil), until: deadline)
            memoryLayout = .qemu
        } catch {
            switch error {
            case .timedOut, .canceled, .socketNotConnected: throw error
            default: memoryLayout = .document
            }
        }
        logger.debug(
            "the client's memory messages are known",
            metadata: ["layout": "\(memoryLayout ?? .document)"])
    }

    /// Waits for the answer to the request that was sent last.
    private func wait(
        for started: MemoryAccessInProgress, until deadline: Duration
    ) throws(Errno) -> MemoryAccessInProgress {
        access = started
        defer { access = nil }
        while true {
            if isClosed { throw .socketNotConnected }
            switch access?.outcome {
            case .done: return access ?? started
            case .refused(let error): throw error
            case .waiting, nil: break
            }
            if mustRest { throw .canceled }
            let left = deadline - loop.now
            guard left > .zero else {
                overdueRequest = started.id
                logger.warning("the client does not answer a request for its memory")
                throw .timedOut
            }
            try serve(atMost: left)
        }
    }

    /// Takes the answer to a request of ours; one that nobody waits for any more is dropped.
    func receiveReply(_ header: MessageHeader, _ payload: Span<UInt8>) {
        if header.id == overdueRequest { overdueRequest = nil }
        guard var current = access, header.id == current.id else {
            logger.debug("a reply nobody waits for", metadata: ["id": "\(header.id)"])
            return
        }
        if header.flags.contains(.error) {
            let error = Errno(rawValue: CInt(truncatingIfNeeded: header.error))
            // An errno that means something else among ours must not pass for it.
            switch error {
            case .timedOut, .canceled, .socketNotConnected: current.outcome = .refused(.ioError)
            default: current.outcome = .refused(header.error == 0 ? .ioError : error)
            }
        } else if let destination = unsafe current.destination {
            unsafe takeData(payload, into: destination, &current)
        } else {
            current.outcome = .done
        }
        access = current
    }

    private func takeData(
        _ payload: Span<UInt8>, into destination: UnsafeMutableRawBufferPointer,
        _ access: inout MemoryAccessInProgress
    ) {
        let count = destination.count
        guard payload.count >= 16 + count else {
            access.outcome = .refused(.ioError)
            return
        }
        // Offsets here are those of the payload, 16 less than those of the message. The upper half of a
        // 64-bit count is zero, and so is QEMU's padding at the end: one of the two often tells, and
        // corrects what was found out before.
        if payload.littleEndian(UInt32.self, at: 12) != 0 {
            memoryLayout = .qemu
        } else if payload.littleEndian(UInt32.self, at: 12 + count) != 0 {
            memoryLayout = .document
        } else if memoryLayout == nil {
            // If everything is zero, both layouts mean the same.
            access.isAmbiguous = (12..<16 + count).contains { payload[$0] != 0 }
        }
        let start = (memoryLayout ?? .document).dataOffset - MessageHeader.size
        unsafe payload.extracting(start..<start + count).withUnsafeBytes { bytes in
            unsafe destination.copyMemory(from: bytes)
        }
        access.outcome = .done
    }
}
