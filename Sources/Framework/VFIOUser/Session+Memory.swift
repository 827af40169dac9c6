// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import SystemPackage

/// DMA_MAP and DMA_UNMAP.
///
/// Specification: the protocol document's sections "VFIO_USER_DMA_MAP" and "VFIO_USER_DMA_UNMAP".
extension Session {
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

    /// DMA_UNMAP. With the reply the client may use the memory for something else.
    func unmapMemory(
        _ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) {
        guard let request = DMAUnmapRequest(payload) else {
            fail(header, .invalidArgument, into: reply)
            return
        }
        var failure: Errno?
        do throws(Errno) { try unmap(request) } catch { failure = error }
        start(header, payload: DMAUnmapRequest.size, error: failure, into: reply)
        reply.append(UInt32(DMAUnmapRequest.size))
        reply.append(request.flags.rawValue)
        reply.append(request.address)
        reply.append(request.count)
    }

    private func unmap(_ request: DMAUnmapRequest) throws(Errno) {
        logger.debug(
            "guest memory unmapped",
            metadata: [
                "address": "0x\(String(request.address, radix: 16))",
                "count": "0x\(String(request.count, radix: 16))",
            ])
        switch request.flags {
        case []: try device.unmapMemory(at: request.address, count: request.count)
        case .all:
            guard request.address == 0, request.count == 0 else { throw .invalidArgument }
            device.unmapAllMemory()
        case .getDirtyBitmap: throw .notSupported
        default: throw .invalidArgument
        }
    }
}
