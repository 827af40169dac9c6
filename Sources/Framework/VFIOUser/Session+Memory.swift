// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import SystemPackage

/// DMA_MAP and DMA_UNMAP.
///
/// Transfers in unmapped memory go on in memory of this process: see the controller's
/// `LeaseTable`.
///
/// Specification: the protocol document's sections "VFIO_USER_DMA_MAP" and "VFIO_USER_DMA_UNMAP".
extension Session {
    /// DMA_MAP.
    func mapMemory(
        _ header: MessageHeader, _ payload: Span<UInt8>, descriptors: inout DescriptorList,
        into reply: MessageBuffer
    ) {
        guard let request = DMAMapRequest(payload) else {
            return fail(header, .invalidArgument, into: reply)
        }
        let range = Self.range(request.address, request.count)
        do throws(MemoryMapError) {
            try map(request, &descriptors)
            logger.debug("mapped guest memory \(range)")
            start(header, into: reply)
        } catch {
            logger.warning("cannot map guest memory \(range): \(error.reason)")
            fail(header, error.errno, into: reply)
        }
    }

    private func map(
        _ request: DMAMapRequest, _ descriptors: inout DescriptorList
    ) throws(MemoryMapError) {
        guard descriptors.count <= 1 else {
            throw MemoryMapError(
                .invalidArgument, "it came with \(descriptors.count) file descriptors, not one")
        }
        let access = MemoryAccess(rawValue: request.flags).intersection([.read, .write])
        guard !access.isEmpty else {
            throw MemoryMapError(.invalidArgument, "it is neither readable nor writable")
        }
        guard request.count > 0,
            !request.address.addingReportingOverflow(request.count - 1).overflow
        else { throw MemoryMapError(.invalidArgument, "the range is empty or wraps around") }
        try device.mapMemory(
            descriptors.take(0), offset: request.offset, at: request.address,
            count: request.count, access: access)
    }

    /// DMA_UNMAP. After the reply the client may use the memory for something else.
    func unmapMemory(
        _ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) {
        guard let request = DMAUnmapRequest(payload) else {
            return fail(header, .invalidArgument, into: reply)
        }
        let range =
            request.flags == .all ? "of all regions" : Self.range(request.address, request.count)
        var failure: Errno?
        do throws(Errno) {
            try unmap(request)
            logger.debug("unmapped guest memory \(range)")
        } catch {
            logger.warning("cannot unmap guest memory \(range): \(error)")
            failure = error
        }
        start(header, payload: DMAUnmapRequest.size, error: failure, into: reply)
        reply.append(UInt32(DMAUnmapRequest.size))
        reply.append(request.flags.rawValue)
        reply.append(request.address)
        reply.append(request.count)
    }

    private func unmap(_ request: DMAUnmapRequest) throws(Errno) {
        switch request.flags {
        case []: try device.unmapMemory(at: request.address, count: request.count)
        case .all:
            guard request.address == 0, request.count == 0 else { throw .invalidArgument }
            device.unmapAllMemory()
        case .getDirtyBitmap: throw .notSupported
        default: throw .invalidArgument
        }
    }

    /// A range of guest addresses for the log: the first and the last, or the first and a length
    /// that no range can have.
    private static func range(_ address: UInt64, _ count: UInt64) -> String {
        let start = "0x" + String(address, radix: 16)
        let last = address.addingReportingOverflow(count &- 1)
        guard count > 0, !last.overflow else { return "\(start) (\(count) bytes)" }
        return "\(start)-0x" + String(last.partialValue, radix: 16)
    }
}
