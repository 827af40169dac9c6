// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// REGION_READ, REGION_WRITE and REGION_WRITE_MULTI: accesses to registers and configuration space.
///
/// Specification: the protocol document's sections of these names.
extension Session {
    /// REGION_READ. The data of a failed read is all ones.
    func readRegion(_ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer) {
        guard payload.count >= RegionAccess.size else {
            return fail(header, .invalidArgument, into: reply)
        }
        let access = RegionAccess(payload)
        guard access.count <= VFIOUserLimits.dataTransfer else {
            return fail(header, .invalidArgument, into: reply)
        }
        let count = Int(access.count)
        let offset = checkedOffset(access) { $0.isReadable }
        start(
            header, payload: RegionAccess.size + count,
            error: offset == nil ? .invalidArgument : nil, into: reply)
        appendFields(of: access, to: reply)
        reply.fill(count, rest: 0xff) { bytes in
            guard let offset, count > 0 else { return }
            device.readRegion(Int(access.region), at: offset, into: &bytes)
        }
    }

    /// REGION_WRITE.
    func writeRegion(_ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer) {
        guard payload.count >= RegionAccess.size else {
            return fail(header, .invalidArgument, into: reply)
        }
        let access = RegionAccess(payload)
        let isDone =
            payload.count - RegionAccess.size == access.count
            && write(access, payload.extracting(RegionAccess.size..<payload.count))
        start(
            header, payload: RegionAccess.size, error: isDone ? nil : .invalidArgument,
            into: reply)
        appendFields(of: access, to: reply)
    }

    /// REGION_WRITE_MULTI. Elements that are not valid are skipped; the reply has the number of the
    /// others.
    func writeRegions(_ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer) {
        guard payload.count >= RegionWriteMulti.headerSize,
            payload.littleEndian(UInt64.self, at: 0)
                <= (payload.count - RegionWriteMulti.headerSize) / RegionWriteMulti.elementSize
        else { return fail(header, .invalidArgument, into: reply) }
        let count = Int(payload.littleEndian(UInt64.self, at: 0))
        var done: UInt64 = 0
        for index in 0..<count {
            let start = RegionWriteMulti.headerSize + index * RegionWriteMulti.elementSize
            let access = RegionAccess(payload, at: start)
            guard access.count <= RegionWriteMulti.longestData else { continue }
            let data = start + RegionAccess.size
            if write(access, payload.extracting(data..<data + Int(access.count))) { done += 1 }
        }
        start(
            header, payload: 8, error: done == count ? nil : .invalidArgument, into: reply)
        reply.append(done)
    }

    private func write(_ access: RegionAccess, _ data: Span<UInt8>) -> Bool {
        guard let offset = checkedOffset(access, { $0.isWritable }) else { return false }
        if data.count > 0 { device.writeRegion(Int(access.region), at: offset, from: data) }
        return true
    }

    /// The offset in the region; `nil` if the access is not within a region that permits it.
    private func checkedOffset(
        _ access: RegionAccess, _ isPermitted: (RegionDescription) -> Bool
    ) -> Int? {
        guard let region = Int(exactly: access.region), region < regions.count,
            isPermitted(regions[region]), access.offset <= regions[region].size,
            access.count <= regions[region].size - access.offset
        else { return nil }
        return Int(exactly: access.offset)
    }

    private func appendFields(of access: RegionAccess, to reply: MessageBuffer) {
        reply.append(access.offset)
        reply.append(access.region)
        reply.append(access.count)
    }
}
