// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing

@testable import MassStorage

/// Commands that return parameter data: INQUIRY, mode pages, lists.
@Suite struct SCSIParameterTests {
    var unit = LogicalUnit(
        identity: InquiryIdentity(serialNumber: "SERIAL01"), blockCount: 2048, isReadOnly: false,
        writeCache: true)
    var readOnly = LogicalUnit(
        identity: InquiryIdentity(serialNumber: "SERIAL01"), blockCount: 2047, isReadOnly: true,
        writeCache: true)

    mutating func reply(_ bytes: [UInt8]) -> [UInt8] {
        guard case .reply(let reply) = unit.execute(cdb(bytes)) else { return [] }
        return reply
    }

    mutating func refusal(_ bytes: [UInt8]) -> SenseData? {
        guard case .checkCondition(let sense) = unit.execute(cdb(bytes)) else { return nil }
        return sense
    }

    // MARK: - INQUIRY

    @Test mutating func `INQUIRY reports a removable disk of SPC-4`() {
        let bytes = reply([0x12, 0, 0, 0, 255])
        #expect(bytes.count == 64)
        #expect(bytes.prefix(8) == [0, 0x80, 6, 2, 59, 0, 0, 0])
        #expect(String(decoding: bytes[8..<36], as: UTF8.self) == "usbvfiodStorage         1.0 ")
        #expect(bytes[58...] == [0x04, 0x60, 0x04, 0xc0, 0x17, 0x30])
    }

    @Test mutating func `INQUIRY data are truncated to the 16-bit allocation length`() {
        #expect(reply([0x12, 0, 0, 0, 36]).count == 36)
        #expect(reply([0x12, 0, 0, 1, 0]).count == 64)
        #expect(reply([0x12, 0, 0, 0, 0]).isEmpty)
    }

    @Test mutating func `INQUIRY refuses unsupported pages and CMDDT`() {
        #expect(refusal([0x12, 0, 0x80, 0, 36]) == .invalidField(inCommand: 2, bit: 7))
        #expect(refusal([0x12, 1, 0xc0, 0, 36]) == .invalidField(inCommand: 2))
        #expect(refusal([0x12, 2, 0, 0, 36]) == .invalidField(inCommand: 1, bit: 1))
    }

    @Test mutating func `the supported VPD pages page lists all pages`() {
        let pages = reply([0x12, 1, 0, 0, 255])
        #expect(pages == [0, 0, 0, 6, 0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2])
        for page in pages[4...] {
            let bytes = reply([0x12, 1, page, 0, 255])
            #expect(bytes.prefix(2) == [0, page])
            #expect(Int(bytes[2]) << 8 | Int(bytes[3]) == bytes.count - 4)
        }
    }

    @Test mutating func `serial number page and T10 designator contain the serial number`() {
        #expect(reply([0x12, 1, 0x80, 0, 255]) == [0, 0x80, 0, 8] + Array("SERIAL01".utf8))
        let designators = reply([0x12, 1, 0x83, 0, 255])
        #expect(designators.prefix(8) == [0, 0x83, 0, 36, 2, 1, 0, 32])
        #expect(
            String(decoding: designators[8...], as: UTF8.self) == "usbvfiodStorage         SERIAL01"
        )
    }

    @Test mutating func `block limits, characteristics and provisioning are reported`() {
        let limits = reply([0x12, 1, 0xb0, 0, 255])
        #expect(limits.count == 64)
        #expect(limits.bigEndian(20..<24) == 0x80_0000)
        #expect(limits.bigEndian(24..<28) == 256)
        #expect(limits.bigEndian(28..<32) == 8)
        #expect(limits.bigEndian(36..<44) == 0x1_0000)
        #expect(reply([0x12, 1, 0xb1, 0, 255]).prefix(6) == [0, 0xb1, 0, 60, 0, 1])
        #expect(reply([0x12, 1, 0xb2, 0, 255]) == [0, 0xb2, 0, 4, 0, 0xe4, 2, 0])
        unit = readOnly
        #expect(reply([0x12, 1, 0xb2, 0, 255]) == [0, 0xb2, 0, 4, 0, 0, 0, 0])
        #expect(reply([0x12, 1, 0xb0, 0, 255]).bigEndian(20..<28) == 0)
    }

    // MARK: - MODE SENSE

    let caching: [UInt8] = [0x08, 18, 4] + [UInt8](repeating: 0, count: 17)
    let control: [UInt8] = [0x0a, 10, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0]
    let exceptions: [UInt8] = [0x1c, 10, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    let descriptor: [UInt8] = [0, 0, 8, 0, 0, 0, 2, 0]

    @Test
    mutating func `MODE SENSE of all pages returns header, block descriptor and pages in order`() {
        #expect(
            reply([0x1a, 0, 0x3f, 0, 192])
                == [55, 0, 0x10, 8] + descriptor + caching + control + exceptions)
        #expect(
            reply([0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 192])
                == [0, 58, 0, 0x10, 0, 0, 0, 8] + descriptor + caching + control + exceptions)
        #expect(reply([0x1a, 8, 0x3f, 0xff, 192]).prefix(4) == [47, 0, 0x10, 0])
    }

    @Test mutating func `the long LBA block descriptor has 16 bytes`() {
        let bytes = reply([0x5a, 0x10, 0x08, 0, 0, 0, 0, 0, 192])
        #expect(bytes.prefix(8) == [0, 42, 0, 0x10, 1, 0, 0, 16])
        #expect(bytes[8..<24] == [0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 0])
    }

    @Test mutating func `MODE SENSE returns a single page by its code`() {
        #expect(reply([0x1a, 8, 0x08, 0, 255]) == [23, 0, 0x10, 0] + caching)
        #expect(reply([0x1a, 8, 0x0a, 0, 255]) == [15, 0, 0x10, 0] + control)
        #expect(reply([0x1a, 8, 0x1c, 0, 255]) == [15, 0, 0x10, 0] + exceptions)
        #expect(refusal([0x1a, 8, 0x01, 0, 255]) == .invalidField(inCommand: 2, bit: 5))
        #expect(refusal([0x1a, 8, 0x08, 1, 255]) == .invalidField(inCommand: 3))
        #expect(reply([0x1a, 0, 0x3f, 0, 4]) == [55, 0, 0x10, 8])
    }

    @Test
    mutating func `MODE SENSE returns changeable and default values; saved ones are not supported`()
    {
        #expect(
            Array(reply([0x1a, 8, 0x48, 0, 255])[4...]) == [8, 18, 4]
                + [UInt8](repeating: 0, count: 17))
        #expect(
            Array(reply([0x1a, 8, 0x4a, 0, 255])[4...]) == [10, 10]
                + [UInt8](repeating: 0, count: 10))
        unit.isWriteCacheEnabled = false
        #expect(reply([0x1a, 8, 0x08, 0, 255])[6] == 0)
        #expect(reply([0x1a, 8, 0x88, 0, 255])[6] == 4)
        #expect(refusal([0x1a, 8, 0xc8, 0, 255]) == .savingNotSupported)
    }

    @Test mutating func `MODE SENSE reports write protection in the header`() {
        unit = readOnly
        #expect(reply([0x1a, 0, 0x3f, 0, 192])[2] == 0x90)
        #expect(reply([0x5a, 0, 0x1c, 0, 0, 0, 0, 0, 192])[3] == 0x90)
        #expect(reply([0x1a, 8, 0x48, 0, 255])[6] == 0)
    }

    // MARK: - MODE SELECT

    mutating func select(_ list: [UInt8], long: Bool = false) -> LogicalUnit.Action {
        let command =
            long
            ? cdb([0x55, 0x10, 0, 0, 0, 0, 0, 0, UInt8(list.count)])
            : cdb([0x15, 0x10, 0, 0, UInt8(list.count)])
        #expect(unit.execute(command) == .receiveParameters(list.count))
        return unit.execute(command, parameters: list)
    }

    @Test mutating func `MODE SELECT disables the write cache after a flush and enables it again`()
    {
        var off = caching
        off[2] = 0
        #expect(select([0, 0, 0, 0] + off) == .operation(.disableWriteCache))
        #expect(unit.isWriteCacheEnabled)
        unit.mediumOperationCompleted(.disableWriteCache)
        #expect(!unit.isWriteCacheEnabled)
        // No unit attention reports the reset, so the host would go on without flushing.
        unit.reset()
        #expect(!unit.isWriteCacheEnabled)
        #expect(select([0, 0, 0, 0, 0, 0, 0, 8] + descriptor + caching, long: true) == .good)
        #expect(unit.isWriteCacheEnabled)
    }

    @Test mutating func `MODE SELECT accepts unchanged pages`() {
        #expect(select([0, 0, 0, 8] + descriptor + caching + control + exceptions) == .good)
        #expect(select([0, 0, 0, 0]) == .good)
        #expect(unit.execute(cdb([0x15, 0x10])) == .good)
    }

    @Test mutating func `MODE SELECT refuses a change of other values at its field`() {
        var wrong = caching
        wrong[3] = 0x20
        #expect(
            select([0, 0, 0, 0] + wrong) == .checkCondition(.invalidField(inParameters: 7, bit: 5)))
        #expect(
            select([0, 0, 0, 0, 0x01, 10] + [UInt8](repeating: 0, count: 10))
                == .checkCondition(.invalidField(inParameters: 4, bit: 5)))
        #expect(
            select([0, 0, 0, 0, 0x08, 17] + [UInt8](repeating: 0, count: 17))
                == .checkCondition(.invalidField(inParameters: 5)))
        var blocks = descriptor
        blocks[6] = 16
        #expect(select([0, 0, 0, 8] + blocks) == .checkCondition(.invalidField(inParameters: 9)))
        blocks = descriptor
        blocks[2] = 9
        #expect(select([0, 0, 0, 8] + blocks) == .checkCondition(.invalidField(inParameters: 4)))
    }

    @Test mutating func `MODE SELECT refuses a truncated parameter list`() {
        #expect(select([0, 0, 0]) == .checkCondition(.parameterListLengthError))
        #expect(select([0, 0, 0, 8, 0]) == .checkCondition(.parameterListLengthError))
        #expect(select([0, 0, 0, 0, 8]) == .checkCondition(.parameterListLengthError))
        #expect(select([0, 0, 0, 0, 8, 18, 0]) == .checkCondition(.parameterListLengthError))
        #expect(
            select([0, 0, 0, 4, 0, 0, 0, 0]) == .checkCondition(.invalidField(inParameters: 3)))
        #expect(unit.isWriteCacheEnabled)
    }

    @Test mutating func `MODE SELECT refuses SP, and a cleared PF`() {
        #expect(refusal([0x15, 0x11, 0, 0, 24]) == .invalidField(inCommand: 1, bit: 0))
        #expect(refusal([0x15, 0x00, 0, 0, 24]) == .invalidField(inCommand: 1, bit: 4))
    }

    // MARK: - Lists

    @Test mutating func `REPORT LUNS lists one logical unit`() {
        let one: [UInt8] = [0, 0, 0, 8] + [UInt8](repeating: 0, count: 12)
        #expect(reply([0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64]) == one)
        #expect(reply([0xa0, 0, 2, 0, 0, 0, 0, 0, 0, 64]) == one)
        #expect(reply([0xa0, 0, 1, 0, 0, 0, 0, 0, 0, 64]) == [UInt8](repeating: 0, count: 8))
        #expect(reply([0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 8]) == Array(one[..<8]))
        #expect(refusal([0xa0, 0, 3, 0, 0, 0, 0, 0, 0, 64]) == .invalidField(inCommand: 2))
    }

    @Test
    mutating func `REPORT SUPPORTED OPERATION CODES lists all commands, with or without timeouts`()
    {
        let list = reply([0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0x10, 0])
        #expect(list.count == 4 + 8 * SCSICommand.all.count)
        #expect(list.bigEndian(0..<4) == UInt64(8 * SCSICommand.all.count))
        #expect(list[4..<12] == [0, 0, 0, 0, 0, 0, 0, 6])
        let timed = reply([0xa3, 0x0c, 0x80, 0, 0, 0, 0, 0, 0x10, 0])
        #expect(timed.count == 4 + 20 * SCSICommand.all.count)
        #expect(timed[9] == 2)
    }

    @Test mutating func `REPORT SUPPORTED OPERATION CODES returns the usage data of one command`() {
        #expect(
            reply([0xa3, 0x0c, 1, 0x28, 0, 0, 0, 0, 0, 255])
                == [0, 3, 0, 10, 0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0])
        #expect(reply([0xa3, 0x0c, 1, 0x04, 0, 0, 0, 0, 0, 255]) == [0, 1, 0, 0])
        #expect(
            reply([0xa3, 0x0c, 2, 0x9e, 0, 0x10, 0, 0, 0, 255]).prefix(6)
                == [0, 3, 0, 16, 0x9e, 0x10])
        #expect(reply([0xa3, 0x0c, 2, 0x9e, 0, 0x12, 0, 0, 0, 255]) == [0, 1, 0, 0])
        #expect(reply([0xa3, 0x0c, 3, 0x9e, 0, 0x10, 0, 0, 0, 255]).prefix(2) == [0, 3])
        #expect(reply([0xa3, 0x0c, 0x81, 0x00, 0, 0, 0, 0, 0, 255]).count == 4 + 6 + 12)
        #expect(
            refusal([0xa3, 0x0c, 1, 0x9e, 0, 0x10, 0, 0, 0, 255]) == .invalidField(inCommand: 4))
        #expect(refusal([0xa3, 0x0c, 2, 0x28, 0, 0, 0, 0, 0, 255]) == .invalidField(inCommand: 4))
        #expect(
            refusal([0xa3, 0x0c, 4, 0x28, 0, 0, 0, 0, 0, 255])
                == .invalidField(inCommand: 2, bit: 2))
    }

    @Test func `the commands are in order, and usage data have the CDB's length`() {
        let codes = SCSICommand.all.map(\.operationCode)
        #expect(codes == codes.sorted())
        #expect(Set(codes).count == codes.count)
        let lengths = [6, 10, 10, 0, 16, 12]
        for command in SCSICommand.all {
            #expect(command.usage.count == lengths[Int(command.operationCode >> 5)])
        }
    }

    @Test mutating func `SEND DIAGNOSTIC supports only the default self-test`() {
        #expect(unit.execute(cdb([0x1d, 4])) == .good)
        #expect(refusal([0x1d, 0x24]) == .invalidField(inCommand: 1, bit: 5))
        #expect(refusal([0x1d, 4, 0, 0, 8]) == .invalidField(inCommand: 4, bit: 3))
    }
}
