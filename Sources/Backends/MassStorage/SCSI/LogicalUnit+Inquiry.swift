// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// INQUIRY and its vital product data (SPC-4, 6.6 and 7.8; SBC-3, 6.5).
extension LogicalUnit {
    /// INQUIRY (SPC-4, 6.6).
    func inquiry(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        // CMDDT is obsolete; REPORT SUPPORTED OPERATION CODES has replaced it.
        try cdb.requireZero(1, mask: 0x02)
        let allocation = Int(cdb[3..<5])
        guard cdb.isSet(1, bit: 0) else {
            try cdb.requireZero(2)
            return .reply(standardInquiry.truncated(to: allocation))
        }
        guard let page = vitalProductData(cdb[2]) else { throw .invalidField(inCommand: 2) }
        return .reply(page.truncated(to: allocation))
    }

    /// Standard INQUIRY data (SPC-4, 6.6.2).
    var standardInquiry: [UInt8] {
        var bytes: [UInt8] = [
            0x00,  // direct access block device
            identity.isRemovable ? 0x80 : 0x00,
            0x06,  // VERSION: SPC-4
            0x02,  // response data format
            0, 0, 0,
            supportsCommandQueuing ? 0x02 : 0x00,  // CMDQUE
        ]
        bytes += Self.padded(identity.vendor, to: 8)
        bytes += Self.padded(identity.product, to: 16)
        bytes += Self.padded(identity.revision, to: 4)
        bytes += [UInt8](repeating: 0, count: 22)
        // Version descriptors: SPC-4, SBC-3, and UAS or Bulk-Only Transport.
        for standard: UInt16 in [0x0460, 0x04c0, supportsCommandQueuing ? 0x1740 : 0x1730] {
            bytes.append(bigEndian: standard)
        }
        bytes[4] = UInt8(clamping: bytes.count - 5)
        return bytes
    }

    /// A page of vital product data; `nil` if the page is not supported.
    private func vitalProductData(_ code: UInt8) -> [UInt8]? {
        switch code {
        case 0x00: Self.page(code, [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2])
        case 0x80: Self.page(code, Array(identity.serialNumber.utf8))
        case 0x83: Self.page(code, designators)
        case 0xb0: Self.page(code, blockLimits)
        case 0xb1: Self.page(code, characteristics)
        case 0xb2: Self.page(code, provisioning)
        default: nil
        }
    }

    /// A T10 vendor ID designator (SPC-4, 7.8.6.4), unique by vendor, product and serial number.
    private var designators: [UInt8] {
        let name =
            Self.padded(identity.vendor, to: 8) + Self.padded(identity.product, to: 16)
            + Array(identity.serialNumber.utf8)
        return [0x02, 0x01, 0x00, UInt8(clamping: name.count)] + name
    }

    /// Block limits (SBC-3, 6.5.3).
    private var blockLimits: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 60)
        bytes[0] = 1  // WSNZ: WRITE SAME of zero blocks is an error
        bytes.store(bigEndian: UInt16(granularity), at: 2)
        // OPTIMAL TRANSFER LENGTH: 1 MiB.
        bytes.store(bigEndian: UInt32(2048), at: 8)
        if !isReadOnly {
            bytes.store(bigEndian: UInt32(MassStorageLimits.unmapBlocks), at: 16)
            bytes.store(bigEndian: UInt32(MassStorageLimits.unmapDescriptors), at: 20)
            bytes.store(bigEndian: UInt32(granularity), at: 24)
            bytes.store(bigEndian: UInt32(0x8000_0000), at: 28)  // UGAVALID, alignment 0
            bytes.store(bigEndian: MassStorageLimits.writeSameBlocks, at: 32)
        }
        return bytes
    }

    /// Block device characteristics (SBC-3, 6.5.2): a non-rotating medium.
    private var characteristics: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 60)
        bytes.store(bigEndian: UInt16(1), at: 0)
        return bytes
    }

    /// Logical block provisioning (SBC-3, 6.5.4): thin; unmapped blocks read as zeroes.
    private var provisioning: [UInt8] {
        isReadOnly ? [0, 0, 0, 0] : [0, 0xe0 | 0x04, 0x02, 0]
    }

    /// Optimal granularity in blocks: a page of the host, if the medium consists of whole pages.
    var granularity: UInt64 { blockCount % 8 == 0 ? 8 : 1 }

    /// A page of vital product data with its header.
    private static func page(_ code: UInt8, _ data: [UInt8]) -> [UInt8] {
        var bytes: [UInt8] = [0x00, code]
        bytes.append(bigEndian: UInt16(clamping: data.count))
        return bytes + data
    }

    /// ASCII text, truncated or padded with spaces to a field of `count` bytes.
    private static func padded(_ text: String, to count: Int) -> [UInt8] {
        let bytes = Array(text.utf8.prefix(count))
        return bytes + [UInt8](repeating: 0x20, count: count - bytes.count)
    }
}
