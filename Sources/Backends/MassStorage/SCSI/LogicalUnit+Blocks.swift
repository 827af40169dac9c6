// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// The commands that concern the blocks of the medium (SBC-3, 5).
extension LogicalUnit {
    // MARK: - Capacity

    /// READ CAPACITY (10). A medium too large for it says so with all ones.
    func readCapacity10(_ block: CommandBlock) throws(SenseData) -> Action {
        guard block.isSet(8, bit: 0) || block[2..<6] == 0 else {
            throw .invalidField(inCommand: 2)
        }
        try requireMedium()
        var bytes: [UInt8] = []
        bytes.append(bigEndian: UInt32(clamping: blockCount - 1))
        bytes.append(bigEndian: UInt32(blockSize))
        return .reply(bytes)
    }

    /// READ CAPACITY (16), with the physical block size and provisioning.
    func readCapacity16(_ block: CommandBlock) throws(SenseData) -> Action {
        guard block.isSet(14, bit: 0) || block[2..<10] == 0 else {
            throw .invalidField(inCommand: 2)
        }
        try requireMedium()
        var bytes = [UInt8](repeating: 0, count: 32)
        bytes.store(bigEndian: blockCount - 1, at: 0)
        bytes.store(bigEndian: UInt32(blockSize), at: 8)
        bytes[13] = UInt8(granularity.trailingZeroBitCount)
        // LBPME and LBPRZ.
        if !isReadOnly { bytes[14] = 0xc0 }
        return .reply(bytes.cut(to: Int(block[10..<14])))
    }

    /// READ FORMAT CAPACITIES, which Windows asks of removable media (USB UFI, 4.10).
    func readFormatCapacities(_ block: CommandBlock) -> Action {
        var bytes: [UInt8] = [0, 0, 0, 8]
        bytes.append(bigEndian: UInt32(clamping: blockCount))
        bytes.append(bigEndian: UInt32(blockSize))
        // Formatted medium, or the largest there could be.
        bytes[8] = isMediumPresent ? 2 : 3
        return .reply(bytes.cut(to: Int(block[7..<9])))
    }

    // MARK: - Reading and writing

    /// READ (6), (10), (12), (16). DPO and FUA change nothing: the host's cache holds what is on
    /// the disk or will be.
    func read(_ block: CommandBlock) throws(SenseData) -> Action {
        try requireNoProtection(block)
        try requireMedium()
        let extent = try extent(block)
        return extent.count == 0 ? .good : .read(extent)
    }

    /// WRITE (6), (10), (12), (16).
    func write(_ block: CommandBlock) throws(SenseData) -> Action {
        try requireNoProtection(block)
        try requireWritable()
        let extent = try extent(block)
        let forcesUnitAccess = block.operationCode >= 0x20 && block.isSet(1, bit: 3)
        return extent.count == 0
            ? .good : .write(extent, durably: forcesUnitAccess || !isWriteCacheEnabled)
    }

    /// WRITE AND VERIFY: what is on the disk was taken by it.
    func writeAndVerify(_ block: CommandBlock) throws(SenseData) -> Action {
        try requireNoProtection(block)
        try block.requireZero(1, mask: 0x04)
        try requireWritable()
        let extent = try extent(block)
        return extent.count == 0 ? .good : .write(extent, durably: true)
    }

    /// VERIFY with BYTCHK 0 (the medium can be read) or 1 (it holds these data).
    func verify(_ block: CommandBlock) throws(SenseData) -> Action {
        try requireNoProtection(block)
        try block.requireZero(1, mask: 0x04)
        try requireMedium()
        let extent = try extent(block)
        guard extent.count > 0 else { return .good }
        return block.isSet(1, bit: 1) ? .compare(extent) : .perform(.verify(extent))
    }

    /// SYNCHRONIZE CACHE (10), (16). The whole file is written, whatever the range.
    func synchronizeCache(_ block: CommandBlock) throws(SenseData) -> Action {
        try requireMedium()
        _ = try extent(block)
        guard !isReadOnly else { return .good }
        return .perform(block.isSet(1, bit: 1) ? .flushInBackground : .flush)
    }

    // MARK: - Provisioning

    /// UNMAP (SBC-3, 5.28).
    func prepareUnmap(_ block: CommandBlock) throws(SenseData) -> Action {
        try block.requireZero(1, mask: 0x01)
        try requireWritable()
        let length = Int(block[7..<9])
        return length == 0 ? .good : .receiveParameters(length)
    }

    func unmap(_ list: [UInt8]) throws(SenseData) -> Action {
        guard list.count >= 8 else { throw .parameterListLengthError }
        // Descriptors that are cut off are ignored, as are the bytes behind them.
        let count = min(Int(list.bigEndian(UInt16.self, at: 2)), list.count - 8) / 16
        guard count <= MassStorageLimits.unmapDescriptors else {
            throw .invalidField(inParameters: 2)
        }
        var extents: [Extent] = []
        var total: UInt64 = 0
        for index in 0..<count {
            let start = 8 + 16 * index
            let extent = try extent(
                list.bigEndian(UInt64.self, at: start),
                UInt64(list.bigEndian(UInt32.self, at: start + 8)))
            total += extent.count
            guard total <= MassStorageLimits.unmapBlocks else {
                throw .invalidField(inParameters: start + 8)
            }
            if extent.count > 0 { extents.append(extent) }
        }
        return extents.isEmpty ? .good : .perform(.unmap(extents))
    }

    /// WRITE SAME (10), (16) (SBC-3, 5.43 and 5.44).
    func prepareWriteSame(_ block: CommandBlock) throws(SenseData) -> Action {
        try requireNoProtection(block)
        // ANCHOR, and the obsolete bits that put addresses into the pattern.
        try block.requireZero(1, mask: 0x16)
        let isLong = block.operationCode == 0x93
        if !isLong { try block.requireZero(1, mask: 0x01) }
        try requireWritable()
        let extent = try extent(block)
        guard (1...MassStorageLimits.writeSameBlocks).contains(extent.count) else {
            throw .invalidField(inCommand: isLong ? 10 : 7)
        }
        // NDOB: the block is not sent, it is zeroes.
        if isLong && block.isSet(1, bit: 0) {
            return .perform(writeSame(block, extent, pattern: nil))
        }
        return .receiveParameters(blockSize)
    }

    func writeSame(_ block: CommandBlock, pattern: [UInt8]) throws(SenseData) -> Action {
        let isZero = pattern.allSatisfy { $0 == 0 }
        return .perform(writeSame(block, try extent(block), pattern: isZero ? nil : pattern))
    }

    private func writeSame(
        _ block: CommandBlock, _ extent: Extent, pattern: [UInt8]?
    ) -> MediumJob {
        .fill(extent, block: pattern, mayUnmap: block.isSet(1, bit: 3))
    }

    // MARK: - Ranges

    /// RDPROTECT, WRPROTECT, VRPROTECT: there is no protection information. The 6-byte commands have
    /// the address there.
    private func requireNoProtection(_ block: CommandBlock) throws(SenseData) {
        if block.operationCode >= 0x20 { try block.requireZero(1, mask: 0xe0) }
    }

    /// The blocks that a command names: the group of its operation code says where.
    private func extent(_ block: CommandBlock) throws(SenseData) -> Extent {
        switch block.operationCode >> 5 {
        case 0:
            let count = block[4] == 0 ? 256 : UInt64(block[4])
            return try extent(block[1..<4] & 0x1f_ffff, count)
        case 4: return try extent(block[2..<10], block[10..<14])
        case 5: return try extent(block[2..<6], block[6..<10])
        default: return try extent(block[2..<6], block[7..<9])
        }
    }

    private func extent(_ first: UInt64, _ count: UInt64) throws(SenseData) -> Extent {
        guard first < blockCount, count <= blockCount - first else { throw .blockOutOfRange }
        return Extent(block: first, count: count)
    }
}
