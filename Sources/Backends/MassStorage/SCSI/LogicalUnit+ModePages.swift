// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// MODE SENSE and MODE SELECT (SPC-4, 6.11 to 6.14 and 7.5).
extension LogicalUnit {
    /// A mode page, with its header: current, default and changeable values.
    private struct ModePage {
        let current: [UInt8]
        let defaults: [UInt8]
        let changeable: [UInt8]

        var code: UInt8 { current[0] }

        /// A page of `count` bytes. Bytes that a dictionary does not name are zero.
        init(
            _ code: UInt8, count: Int, values: [Int: UInt8] = [:], defaults: [Int: UInt8]? = nil,
            changeable: [Int: UInt8] = [:]
        ) {
            func bytes(_ settings: [Int: UInt8]) -> [UInt8] {
                var bytes = [UInt8](repeating: 0, count: count)
                bytes[0] = code
                bytes[1] = UInt8(count - 2)
                for index in 2..<count { bytes[index] = settings[index] ?? 0 }
                return bytes
            }
            current = bytes(values)
            self.defaults = bytes(defaults ?? values)
            self.changeable = bytes(changeable)
        }
    }

    private static let allPages: UInt8 = 0x3f
    private static let cachingPage: UInt8 = 0x08
    private static let writeCacheEnable: UInt8 = 0x04

    /// The supported mode pages, in ascending order of page codes.
    private var modePages: [ModePage] {
        let on = [2: Self.writeCacheEnable]
        return [
            // Caching: WCE, which the host may change.
            ModePage(
                Self.cachingPage, count: 20, values: isWriteCacheEnabled ? on : [:],
                defaults: defaultWriteCache ? on : [:], changeable: isReadOnly ? [:] : on),
            // Control: BUSY TIMEOUT PERIOD is undefined.
            ModePage(0x0a, count: 12, values: [8: 0xff, 9: 0xff]),
            // Informational exceptions: DEXCPT, none are reported.
            ModePage(0x1c, count: 12, values: [2: 0x08]),
        ]
    }

    /// MODE SENSE (6), (10).
    func modeSense(_ cdb: CommandDescriptorBlock, isShort: Bool) throws(SenseData) -> Action {
        let pageCode = cdb[2] & 0x3f
        let subpage = cdb[3]
        let control = cdb[2] >> 6
        guard control != 3 else { throw .savingNotSupported }
        guard subpage == 0 || subpage == 0xff else { throw .invalidField(inCommand: 3) }
        let pages = modePages.filter { pageCode == Self.allPages || $0.code == pageCode }
        guard !pages.isEmpty else { throw .invalidField(inCommand: 2, bit: 5) }

        let isLong = !isShort && cdb.isSet(1, bit: 4)
        let descriptor = cdb.isSet(1, bit: 3) ? [] : blockDescriptor(isLong: isLong)
        var data: [UInt8] = []
        for page in pages {
            switch control {
            case 1: data += page.changeable
            case 2: data += page.defaults
            default: data += page.current
            }
        }
        // WP, and DPOFUA: READ and WRITE accept DPO and FUA.
        let deviceSpecific: UInt8 = (isReadOnly ? 0x80 : 0) | 0x10
        var header: [UInt8]
        if isShort {
            header = [
                UInt8(clamping: 3 + descriptor.count + data.count), 0, deviceSpecific,
                UInt8(descriptor.count),
            ]
        } else {
            header = [0, 0, 0, deviceSpecific, isLong ? 1 : 0, 0, 0, UInt8(descriptor.count)]
            header.store(bigEndian: UInt16(clamping: 6 + descriptor.count + data.count), at: 0)
        }
        let allocation = isShort ? Int(cdb[4]) : Int(cdb[7..<9])
        return .reply((header + descriptor + data).truncated(to: allocation))
    }

    /// Mode parameter block descriptor: number and size of the blocks (SBC-3, 6.4.2).
    private func blockDescriptor(isLong: Bool) -> [UInt8] {
        let count = isMediumPresent ? blockCount : 0
        var bytes: [UInt8] = []
        if isLong {
            bytes.append(bigEndian: count)
            bytes += [0, 0, 0, 0]
        } else {
            bytes.append(bigEndian: UInt32(clamping: count))
        }
        bytes.append(bigEndian: UInt32(blockSize))
        return bytes
    }

    /// Executes MODE SELECT (6), (10) up to its parameter list.
    func prepareModeSelect(_ cdb: CommandDescriptorBlock, length: Int) throws(SenseData) -> Action {
        // SP: saving pages is not supported.
        try cdb.requireZero(1, mask: 0x01)
        // PF: the pages must have the format of the standard.
        guard cdb.isSet(1, bit: 4) else { throw .invalidField(inCommand: 1, bit: 4) }
        return length == 0 ? .good : .receiveParameters(length)
    }

    /// Executes MODE SELECT with its parameter list.
    mutating func modeSelect(
        _ cdb: CommandDescriptorBlock, _ list: [UInt8], isShort: Bool
    ) throws(SenseData) -> Action {
        let headerCount = isShort ? 4 : 8
        guard list.count >= headerCount else { throw .parameterListLengthError }
        let isLong = !isShort && list[4] & 1 != 0
        let descriptorCount = isShort ? Int(list[3]) : Int(list.bigEndian(UInt16.self, at: 6))
        var position = headerCount + descriptorCount
        guard position <= list.count else { throw .parameterListLengthError }
        if descriptorCount > 0 {
            try checkBlockDescriptor(
                list, at: headerCount, count: descriptorCount, isLong: isLong,
                countField: isShort ? 3 : 6)
        }
        var writeCache = isWriteCacheEnabled
        while position < list.count {
            guard position + 2 <= list.count else { throw .parameterListLengthError }
            guard let page = modePages.first(where: { $0.code == list[position] & 0x7f }) else {
                throw .invalidField(inParameters: position, bit: 5)
            }
            guard list[position + 1] == page.current[1] else {
                throw .invalidField(inParameters: position + 1)
            }
            guard position + page.current.count <= list.count else {
                throw .parameterListLengthError
            }
            for index in 2..<page.current.count {
                let wrong = (list[position + index] ^ page.current[index]) & ~page.changeable[index]
                guard wrong == 0 else {
                    throw .invalidField(
                        inParameters: position + index,
                        bit: UInt8(7 - wrong.leadingZeroBitCount))
                }
            }
            if page.code == Self.cachingPage {
                writeCache = list[position + 2] & Self.writeCacheEnable != 0
            }
            position += page.current.count
        }
        if isWriteCacheEnabled && !writeCache { return .operation(.disableWriteCache) }
        isWriteCacheEnabled = writeCache
        return .good
    }

    /// Checks a block descriptor, which may only repeat the current values.
    private func checkBlockDescriptor(
        _ list: [UInt8], at start: Int, count: Int, isLong: Bool, countField: Int
    ) throws(SenseData) {
        guard count == (isLong ? 16 : 8) else { throw .invalidField(inParameters: countField) }
        let numberBytes = isLong ? 8 : 4
        let number = list.bigEndian(start..<start + numberBytes)
        let current = isLong ? blockCount : UInt64(UInt32(clamping: blockCount))
        // 0 leaves the number of blocks unchanged.
        guard number == 0 || number == current else {
            throw .invalidField(inParameters: start)
        }
        let sizeField = start + (isLong ? 12 : 5)
        let size = list.bigEndian(sizeField..<start + count)
        guard size == UInt64(blockSize) else { throw .invalidField(inParameters: sizeField) }
    }
}
