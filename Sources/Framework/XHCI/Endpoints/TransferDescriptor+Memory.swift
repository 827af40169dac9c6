// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// The data of a transfer descriptor in memory.
extension TransferDescriptor {
    /// The data bytes of all TRBs.
    var dataCount: Int {
        var total = 0
        for index in entries.indices where TransferTRB(entries[index].trb).hasData {
            total += length(ofEntry: index)
        }
        return total
    }

    /// Adds the data of all TRBs to a lease. If this process cannot access all of it directly, the
    /// lease gets staging memory instead, which is filled for an OUT transfer.
    ///
    /// - Throws: if data is not in guest memory or may not be written, or if the staging memory is
    ///   exhausted.
    func fill(
        _ lease: MemoryLease, _ direction: Direction, _ memory: GuestMemory,
        _ budget: StagingBudget
    ) throws(DMAError) {
        var isAccessible = true
        for index in entries.indices {
            let trb = TransferTRB(entries[index].trb)
            let count = length(ofEntry: index)
            guard trb.hasData, count > 0 else { continue }
            if trb.isImmediateData {
                guard direction == .out else {
                    throw DMAError(.readOnly, at: GuestAddress(trb.parameter), count: count)
                }
                Self.appendImmediate(trb, from: trb.length - count, count: count, to: lease)
                continue
            }
            let address = GuestAddress(trb.parameter) + (trb.length - count)
            try memory.forEachSlice(
                at: address, count: count, writable: direction == .in
            ) { slice in
                if let bytes = unsafe slice.bytes {
                    unsafe lease.append(bytes, keeping: slice.owner)
                } else {
                    isAccessible = false
                }
            }
        }
        guard !isAccessible else { return }
        let count = dataCount
        guard let staging = StagingMemory(count: count, of: budget) else {
            throw DMAError(.noBuffer, at: GuestAddress(entries[0].position.address), count: count)
        }
        unsafe lease.replace(withStaged: staging.bytes, keeping: staging)
        if direction == .out { try read(into: lease.buffer, memory) }
    }

    /// Copies the first data bytes from guest memory to a buffer in staging memory.
    func read(into buffer: TransferBuffer, _ memory: GuestMemory) throws(DMAError) {
        unsafe try forEachSegment(of: buffer) { (bytes, address) throws(DMAError) in
            unsafe try memory.read(into: bytes, at: address)
        }
    }

    /// Copies a buffer in staging memory to the first data bytes in guest memory.
    func write(_ buffer: TransferBuffer, _ memory: GuestMemory) throws(DMAError) {
        unsafe try forEachSegment(of: buffer) { (bytes, address) throws(DMAError) in
            unsafe try memory.write(UnsafeRawBufferPointer(bytes), at: address)
        }
    }

    /// Calls `body` with each part of a buffer that is the data of one TRB, and its guest address.
    private func forEachSegment(
        of buffer: TransferBuffer,
        _ body: (UnsafeMutableRawBufferPointer, GuestAddress) throws(DMAError) -> Void
    ) throws(DMAError) {
        var offset = 0
        for index in entries.indices where TransferTRB(entries[index].trb).hasData {
            let trb = TransferTRB(entries[index].trb)
            let length = length(ofEntry: index)
            // Immediate data is in the ring, in the TRB itself.
            let base = trb.isImmediateData ? entries[index].position.address : trb.parameter
            let start = GuestAddress(base) + (trb.length - length)
            let part = buffer.slice(from: offset, count: length)
            var done = 0
            unsafe try part.forEachSegment { (segment) throws(DMAError) in
                unsafe try body(segment, start + done)
                done += segment.count
            }
            offset += part.count
            if offset == buffer.count { return }
        }
    }

    /// Appends immediate data (IDT): up to eight bytes in the TRB itself (xHCI 4.11.7).
    private static func appendImmediate(
        _ trb: TransferTRB, from offset: Int, count: Int, to lease: MemoryLease
    ) {
        let memory = StagingMemory(count: count)
        for index in 0..<count {
            unsafe memory.bytes[index] = UInt8(
                truncatingIfNeeded: trb.parameter >> UInt64((offset + index) * 8))
        }
        unsafe lease.append(memory.bytes, keeping: memory)
    }
}
