// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// Registers, configuration space and whatever else a device has in its regions.
extension Session {
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
        repeatFields(of: access, into: reply)
        reply.fill(count, rest: 0xff) { bytes in
            guard let offset, count > 0 else { return }
            device.readRegion(Int(access.region), at: offset, into: &bytes)
        }
    }

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
        repeatFields(of: access, into: reply)
    }

    func writeRegions(_ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer) {
        guard payload.count >= RegionWriteMulti.headerSize,
            payload.littleEndian(UInt64.self, at: 0)
                <= (payload.count - RegionWriteMulti.headerSize) / RegionWriteMulti.elementSize
        else { return fail(header, .invalidArgument, into: reply) }
        let count = Int(payload.littleEndian(UInt64.self, at: 0))
        var done: UInt64 = 0
        for index in 0..<count {
            let place = RegionWriteMulti.headerSize + index * RegionWriteMulti.elementSize
            let access = RegionAccess(payload, at: place)
            guard access.count <= RegionWriteMulti.longestData else { continue }
            let data = place + RegionAccess.size
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

    /// The offset, if the access lies in a region that allows it.
    private func checkedOffset(
        _ access: RegionAccess, _ isAllowed: (RegionDescription) -> Bool
    ) -> Int? {
        guard let region = Int(exactly: access.region), region < regions.count,
            isAllowed(regions[region]), access.offset <= regions[region].size,
            access.count <= regions[region].size - access.offset
        else { return nil }
        return Int(exactly: access.offset)
    }

    private func repeatFields(of access: RegionAccess, into reply: MessageBuffer) {
        reply.append(access.offset)
        reply.append(access.region)
        reply.append(access.count)
    }
}
