// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import SystemPackage

/// DMA_MAP, DMA_UNMAP and DEVICE_RESET. The replies to the last two are delayed while a device may
/// still access the guest's memory.
///
/// Specification: the protocol document's sections "VFIO_USER_DMA_MAP", "VFIO_USER_DMA_UNMAP" and
/// "VFIO_USER_DEVICE_RESET".
extension Session {
    // MARK: - Reset

    /// DEVICE_RESET. With the reply the client may reuse all guest memory, for the next guest perhaps.
    func resetDevice(_ header: MessageHeader, into reply: MessageBuffer) -> Disposition {
        let delayed = DelayedReply(header: header)
        device.reset { [weak self] in self?.complete(delayed, error: nil) }
        return delayed.isFinished ? answered(delayed, nil, into: reply) : delay(delayed)
    }

    // MARK: - Memory

    /// DMA_MAP.
    func mapMemory(
        _ header: MessageHeader, _ payload: Span<UInt8>, descriptors: inout DescriptorList,
        into reply: MessageBuffer
    ) {
        do throws(Errno) {
            guard let request = DMAMapRequest(payload), descriptors.count <= 1 else {
                throw .invalidArgument
            }
            let access = MemoryAccess(rawValue: request.flags).intersection([.read, .write])
            guard !access.isEmpty, request.count > 0,
                !request.address.addingReportingOverflow(request.count - 1).overflow
            else { throw .invalidArgument }
            logger.debug(
                "memory added",
                metadata: [
                    "address": "0x\(String(request.address, radix: 16))",
                    "count": "0x\(String(request.count, radix: 16))",
                    "mapped": "\(!descriptors.isEmpty)",
                ])
            try device.mapMemory(
                descriptors.take(0), offset: request.offset, at: request.address,
                count: request.count, access: access)
            start(header, into: reply)
        } catch {
            logger.warning("memory is not added", metadata: ["reason": "\(error)"])
            fail(header, error, into: reply)
        }
    }

    /// DMA_UNMAP.
    func unmapMemory(
        _ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) -> Disposition {
        guard let request = DMAUnmapRequest(payload) else {
            fail(header, .invalidArgument, into: reply)
            if header.flags.contains(.noReply) { reply.removeAll() }
            return .answered
        }
        let delayed = DelayedReply(header: header, request: request)
        var failure: Errno?
        do throws(Errno) {
            try startUnmapping(request) { [weak self] in self?.complete(delayed, error: nil) }
        } catch {
            failure = error
            delayed.isFinished = true
        }
        return delayed.isFinished ? answered(delayed, failure, into: reply) : delay(delayed)
    }

    private func startUnmapping(
        _ request: DMAUnmapRequest, whenFinished finished: @escaping () -> Void
    ) throws(Errno) {
        logger.debug(
            "memory removed",
            metadata: [
                "address": "0x\(String(request.address, radix: 16))",
                "count": "0x\(String(request.count, radix: 16))",
            ])
        switch request.flags {
        case []:
            try device.unmapMemory(
                at: request.address, count: request.count, whenFinished: finished)
        case .all:
            guard request.address == 0, request.count == 0 else { throw .invalidArgument }
            device.unmapAllMemory(whenFinished: finished)
        case .getDirtyBitmap: throw .notSupported
        default: throw .invalidArgument
        }
    }

    // MARK: - Delayed replies

    /// A reply that is sent when devices no longer access the memory concerned.
    final class DelayedReply {
        fileprivate let header: MessageHeader
        /// The fields that a reply to DMA_UNMAP repeats; `nil` for DEVICE_RESET.
        fileprivate let request: DMAUnmapRequest?
        fileprivate(set) var isFinished = false
        fileprivate var isDelayed = false
        /// The timeout after which the reply reports an error; cancelled with the reply.
        var timer: Watch?

        fileprivate init(header: MessageHeader, request: DMAUnmapRequest? = nil) {
            self.header = header
            self.request = request
        }
    }

    private func delay(_ delayed: DelayedReply) -> Disposition {
        delayed.isDelayed = true
        delayedReplies += 1
        return .delayed(delayed)
    }

    /// Sends a delayed reply, unless it has been sent.
    func complete(_ delayed: DelayedReply, error: Errno?) {
        guard !delayed.isFinished else { return }
        delayed.isFinished = true
        delayed.timer = nil
        guard delayed.isDelayed else { return }
        delayedReplies -= 1
        _ = answered(delayed, error, into: lateReply)
        sendLater?(lateReply)
    }

    private func answered(
        _ delayed: DelayedReply, _ error: Errno?, into reply: MessageBuffer
    ) -> Disposition {
        reply.removeAll()
        if delayed.header.flags.contains(.noReply) { return .answered }
        guard let request = delayed.request else {
            start(delayed.header, error: error, into: reply)
            return .answered
        }
        start(delayed.header, payload: DMAUnmapRequest.size, error: error, into: reply)
        reply.append(UInt32(DMAUnmapRequest.size))
        reply.append(request.flags.rawValue)
        reply.append(request.address)
        reply.append(request.count)
        return .answered
    }
}
