// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// The commands that access the blocks of the medium or report on them (SBC-3, 5).
extension LogicalUnit {
    // MARK: - Capacity

    /// READ CAPACITY (10). A last LBA of more than 32 bits is reported as FFFFFFFFh.
    func readCapacity10(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        guard cdb.isSet(8, bit: 0) || cdb[2..<6] == 0 else {
            throw .invalidField(inCommand: 2)
        }
        try requireMedium()
        var bytes: [UInt8] = []
        bytes.append(bigEndian: UInt32(clamping: blockCount - 1))
        bytes.append(bigEndian: UInt32(blockSize))
        return .reply(bytes)
    }

    /// READ CAPACITY (16), with the physical block size and logical block provisioning.
    func readCapacity16(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        guard cdb.isSet(14, bit: 0) || cdb[2..<10] == 0 else {
            throw .invalidField(inCommand: 2)
        }
        try requireMedium()
        var bytes = [UInt8](repeating: 0, count: 32)
        bytes.store(bigEndian: blockCount - 1, at: 0)
        bytes.store(bigEndian: UInt32(blockSize), at: 8)
        bytes[13] = UInt8(granularity.trailingZeroBitCount)
        // LBPME and LBPRZ.
        if !isReadOnly { bytes[14] = 0xc0 }
        return .reply(bytes.truncated(to: Int(cdb[10..<14])))
    }

    /// READ FORMAT CAPACITIES (USB UFI, 4.10), which Windows sends to removable media.
    func readFormatCapacities(_ cdb: CommandDescriptorBlock) -> Action {
        var bytes: [UInt8] = [0, 0, 0, 8]
        bytes.append(bigEndian: UInt32(clamping: blockCount))
        bytes.append(bigEndian: UInt32(blockSize))
        // Descriptor code: formatted media, or no media present.
        bytes[8] = isMediumPresent ? 2 : 3
        return .reply(bytes.truncated(to: Int(cdb[7..<9])))
    }

    // MARK: - Reading and writing

    /// READ (6), (10), (12), (16). DPO and FUA have no effect: the page cache is never older than
    /// the disk.
    func read(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        try requireNoProtection(cdb)
        try requireMedium()
        let extent = try extent(cdb)
        return extent.count == 0 ? .good : .read(extent)
    }

    /// WRITE (6), (10), (12), (16).
    func write(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        try requireNoProtection(cdb)
        try requireWritable()
        let extent = try extent(cdb)
        let forcesUnitAccess = cdb.operationCode >= 0x20 && cdb.isSet(1, bit: 3)
        return extent.count == 0
            ? .good : .write(extent, durably: forcesUnitAccess || !isWriteCacheEnabled)
    }

    /// WRITE AND VERIFY (10), (12), (16). A durable write counts as verified.
    func writeAndVerify(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        try requireNoProtection(cdb)
        try cdb.requireZero(1, mask: 0x04)
        try requireWritable()
        let extent = try extent(cdb)
        return extent.count == 0 ? .good : .write(extent, durably: true)
    }

    /// VERIFY (10), (12), (16). BYTCHK 0 checks that the blocks are readable, BYTCHK 1 compares
    /// them with the Data-Out bytes.
    func verify(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        try requireNoProtection(cdb)
        try cdb.requireZero(1, mask: 0x04)
        try requireMedium()
        let extent = try extent(cdb)
        guard extent.count > 0 else { return .good }
        return cdb.isSet(1, bit: 1) ? .compare(extent) : .operation(.verify(extent))
    }

    /// SYNCHRONIZE CACHE (10), (16). The whole image is flushed, not only the range of the command.
    func synchronizeCache(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        try requireMedium()
        _ = try extent(cdb)
        guard !isReadOnly else { return .good }
        return .operation(cdb.isSet(1, bit: 1) ? .flushInBackground : .flush)
    }

    // MARK: - Provisioning

    /// Executes UNMAP (SBC-3, 5.28) up to its parameter list.
    func prepareUnmap(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        try cdb.requireZero(1, mask: 0x01)
        try requireWritable()
        let length = Int(cdb[7..<9])
        return length == 0 ? .good : .receiveParameters(length)
    }

    /// Executes UNMAP with its parameter list.
    func unmap(_ list: [UInt8]) throws(SenseData) -> Action {
        guard list.count >= 8 else { throw .parameterListLengthError }
        // Incomplete descriptors and the bytes behind the last descriptor are ignored.
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
        return extents.isEmpty ? .good : .operation(.unmap(extents))
    }

    /// Executes WRITE SAME (10), (16) (SBC-3, 5.43 and 5.44) up to its block.
    func prepareWriteSame(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        try requireNoProtection(cdb)
        // ANCHOR, and the obsolete PBDATA and LBDATA.
        try cdb.requireZero(1, mask: 0x16)
        let isLong = cdb.operationCode == 0x93
        if !isLong { try cdb.requireZero(1, mask: 0x01) }
        try requireWritable()
        let extent = try extent(cdb)
        guard (1...MassStorageLimits.writeSameBlocks).contains(extent.count) else {
            throw .invalidField(inCommand: isLong ? 10 : 7)
        }
        // NDOB: the host sends no block; zeroes are written.
        if isLong && cdb.isSet(1, bit: 0) {
            return .operation(writeSame(cdb, extent, pattern: nil))
        }
        return .receiveParameters(blockSize)
    }

    /// Executes WRITE SAME with the block of its data stage.
    func writeSame(_ cdb: CommandDescriptorBlock, pattern: [UInt8]) throws(SenseData) -> Action {
        let isZero = pattern.allSatisfy { $0 == 0 }
        return .operation(writeSame(cdb, try extent(cdb), pattern: isZero ? nil : pattern))
    }

    private func writeSame(
        _ cdb: CommandDescriptorBlock, _ extent: Extent, pattern: [UInt8]?
    ) -> MediumOperation {
        .fill(extent, block: pattern, mayUnmap: cdb.isSet(1, bit: 3))
    }

    // MARK: - Ranges

    /// Refuses RDPROTECT, WRPROTECT and VRPROTECT: there is no protection information. In the
    /// 6-byte commands these bits belong to the address.
    private func requireNoProtection(_ cdb: CommandDescriptorBlock) throws(SenseData) {
        if cdb.operationCode >= 0x20 { try cdb.requireZero(1, mask: 0xe0) }
    }

    /// The blocks of a command. The group of its operation code determines the offsets of the
    /// fields.
    private func extent(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Extent {
        switch cdb.operationCode >> 5 {
        case 0:
            let count = cdb[4] == 0 ? 256 : UInt64(cdb[4])
            return try extent(cdb[1..<4] & 0x1f_ffff, count)
        case 4: return try extent(cdb[2..<10], cdb[10..<14])
        case 5: return try extent(cdb[2..<6], cdb[6..<10])
        default: return try extent(cdb[2..<6], cdb[7..<9])
        }
    }

    private func extent(_ first: UInt64, _ count: UInt64) throws(SenseData) -> Extent {
        guard first < blockCount, count <= blockCount - first else { throw .blockOutOfRange }
        return Extent(block: first, count: count)
    }
}
