// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_REGION_IO_FDS and DEVICE_GET_IRQ_INFO.
///
/// Specification: the protocol document's sections of these names.
extension Session {
    /// DEVICE_GET_INFO.
    func describeDevice(_ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer)
    {
        guard payload.count >= 16 else { return fail(header, .invalidArgument, into: reply) }
        start(header, payload: 16, into: reply)
        reply.append(16 as UInt32)
        // VFIO_DEVICE_FLAGS_RESET and VFIO_DEVICE_FLAGS_PCI.
        reply.append(0b11 as UInt32)
        reply.append(UInt32(regions.count))
        reply.append(UInt32(interrupts.count))
    }

    /// DEVICE_GET_REGION_INFO. A region that the device does not have is described with size 0: the
    /// client of rust-vmm would take the payload of an error for a description.
    func describeRegion(_ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer)
    {
        guard payload.count >= 32 else { return fail(header, .invalidArgument, into: reply) }
        let index = payload.littleEndian(UInt32.self, at: 8)
        let region = index < regions.count ? regions[Int(index)] : .absent
        // Bit 0 is VFIO_REGION_INFO_FLAG_READ, bit 1 FLAG_WRITE. FLAG_MMAP is never set: QEMU would
        // then wait for the reply to every write to the region.
        let flags: UInt32 = (region.isReadable ? 1 : 0) | (region.isWritable ? 2 : 0)
        start(header, payload: 32, into: reply)
        reply.append(32 as UInt32)
        reply.append(region.size == 0 ? 0 : flags)
        reply.append(index)
        reply.append(0 as UInt32)
        reply.append(region.size)
        reply.append(0 as UInt64)
    }

    /// DEVICE_GET_REGION_IO_FDS. The reply has no descriptor.
    func describeRegionDescriptors(
        _ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) {
        guard payload.count >= 16, payload.littleEndian(UInt32.self, at: 8) < regions.count else {
            return fail(header, .invalidArgument, into: reply)
        }
        start(header, payload: 16, into: reply)
        reply.append(16 as UInt32)
        reply.append(0 as UInt32)
        reply.append(payload.littleEndian(UInt32.self, at: 8))
        reply.append(0 as UInt32)
    }

    /// DEVICE_GET_IRQ_INFO. An interrupt type that the device does not have is described with no
    /// vectors.
    func describeInterrupt(
        _ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) {
        guard payload.count >= 16 else { return fail(header, .invalidArgument, into: reply) }
        let index = payload.littleEndian(UInt32.self, at: 8)
        let interrupt = index < interrupts.count ? interrupts[Int(index)] : .absent
        start(header, payload: 16, into: reply)
        reply.append(16 as UInt32)
        reply.append(interrupt.count == 0 ? 0 : interrupt.flags.rawValue)
        reply.append(index)
        reply.append(UInt32(interrupt.count))
    }
}
