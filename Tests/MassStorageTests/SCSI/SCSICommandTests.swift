// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing

@testable import MassStorage

/// A CDB, padded to the length of its operation code's group.
func cdb(_ bytes: [UInt8], at changes: [Int: UInt8] = [:]) -> CommandDescriptorBlock {
    let lengths = [6, 10, 10, 6, 16, 12, 6, 6]
    var all = bytes
    let length = lengths[Int(bytes[0] >> 5)]
    all += [UInt8](repeating: 0, count: max(0, length - bytes.count))
    for (index, value) in changes { all[index] = value }
    return CommandDescriptorBlock(all)
}

/// Actions of the logical unit for commands, without transport or image.
@Suite struct SCSICommandTests {
    var unit = LogicalUnit(
        identity: InquiryIdentity(serialNumber: "SERIAL01"), blockCount: 2048, isReadOnly: false,
        writeCache: true)
    var readOnly = LogicalUnit(
        identity: InquiryIdentity(serialNumber: "SERIAL01"), blockCount: 2048, isReadOnly: true,
        writeCache: true)

    typealias Action = LogicalUnit.Action

    // MARK: - Reading and writing

    static let ranges: [(CommandDescriptorBlock, Extent)] = [
        (cdb([0x08, 0, 0, 5, 3]), Extent(block: 5, count: 3)),
        (cdb([0x08, 0, 0, 5, 0]), Extent(block: 5, count: 256)),
        // The three bits above the 21-bit address are obsolete.
        (cdb([0x08, 0xe0, 0, 5, 3]), Extent(block: 5, count: 3)),
        (cdb([0x28, 0, 0, 0, 7, 0xfe, 0, 0, 2]), Extent(block: 2046, count: 2)),
        (cdb([0xa8, 0, 0, 0, 0, 1, 0, 0, 7, 0xff]), Extent(block: 1, count: 2047)),
        (
            cdb([0x88, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 1, 0]),
            Extent(block: 9, count: 256)
        ),
    ]

    @Test("every form of READ decodes its range", arguments: ranges)
    mutating func read(command: CommandDescriptorBlock, extent: Extent) {
        #expect(unit.execute(command) == .read(extent))
    }

    @Test("every form of WRITE decodes its range", arguments: ranges)
    mutating func write(command: CommandDescriptorBlock, extent: Extent) {
        var bytes = (0..<command.count).map { command[$0] }
        bytes[0] += 2
        #expect(unit.execute(CommandDescriptorBlock(bytes)) == .write(extent, durably: false))
        #expect(readOnly.execute(CommandDescriptorBlock(bytes)) == .checkCondition(.writeProtected))
        bytes[0] -= 2
        #expect(readOnly.execute(CommandDescriptorBlock(bytes)) == .read(extent))
    }

    @Test(
        "a range beyond the last block is out of range, without overflow",
        arguments: [
            cdb([0x28, 0, 0, 0, 8, 0, 0, 0, 1]),
            cdb([0x28, 0, 0, 0, 7, 0xff, 0, 0, 2]),
            cdb([0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff]),
            cdb([0x08, 0x1f, 0xff, 0xff, 1]),
            cdb([0x28, 0, 0, 0, 8, 0, 0, 0, 0]),
            cdb([0xa8, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            cdb(
                [0x88, 0] + [UInt8](repeating: 0xff, count: 8) + [0xff, 0xff, 0xff, 0xff]),
            cdb([0x88, 0] + [UInt8](repeating: 0xff, count: 8) + [0, 0, 0, 1]),
            cdb([0x88, 0x80 >> 4] + [0, 0, 0, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 0xff]),
            cdb([0x2f, 0, 0, 0, 8, 0, 0, 0, 1]),
            cdb([0x35, 0, 0, 0, 8, 0, 0, 0, 1]),
            cdb([0x2a, 0, 0, 0, 8, 0, 0, 0, 1]),
            cdb([0x93, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1]),
        ])
    mutating func outOfRange(command: CommandDescriptorBlock) {
        #expect(unit.execute(command) == .checkCondition(.blockOutOfRange))
    }

    @Test mutating func `commands of zero blocks succeed without data`() {
        #expect(unit.execute(cdb([0x28, 0, 0, 0, 0, 1])) == .good)
        #expect(unit.execute(cdb([0x2a, 0, 0, 0, 0, 1])) == .good)
        #expect(unit.execute(cdb([0x2f, 2, 0, 0, 0, 1])) == .good)
    }

    @Test mutating func `writes are durable with FUA or a disabled write cache`() {
        let extent = Extent(block: 0, count: 1)
        #expect(
            unit.execute(cdb([0x2a, 0x08, 0, 0, 0, 0, 0, 0, 1])) == .write(extent, durably: true))
        #expect(
            unit.execute(cdb([0x2a, 0x10, 0, 0, 0, 0, 0, 0, 1])) == .write(extent, durably: false)
        )
        // In WRITE (6) the FUA bit belongs to the address.
        #expect(
            unit.execute(cdb([0x0a, 0x00, 0, 0, 1])) == .write(extent, durably: false))
        #expect(
            unit.execute(cdb([0x2e, 0, 0, 0, 0, 0, 0, 0, 1])) == .write(extent, durably: true))
        unit.isWriteCacheEnabled = false
        #expect(
            unit.execute(cdb([0x2a, 0, 0, 0, 0, 0, 0, 0, 1])) == .write(extent, durably: true))
    }

    @Test(
        "protection information is not supported",
        arguments: [0x28, 0x2a, 0x2e, 0x2f, 0x41, 0x88, 0x8a, 0x93, 0xa8, 0xaa] as [UInt8])
    mutating func protection(code: UInt8) {
        #expect(
            unit.execute(cdb([code, 0x20])) == .checkCondition(.invalidField(inCommand: 1, bit: 5)))
    }

    @Test mutating func `VERIFY reads the medium or compares data with it`() {
        let extent = Extent(block: 4, count: 2)
        #expect(unit.execute(cdb([0x2f, 0, 0, 0, 0, 4, 0, 0, 2])) == .operation(.verify(extent)))
        #expect(unit.execute(cdb([0x2f, 2, 0, 0, 0, 4, 0, 0, 2])) == .compare(extent))
        #expect(
            unit.execute(cdb([0x8f, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2]))
                == .compare(extent))
        #expect(
            unit.execute(cdb([0x2f, 6, 0, 0, 0, 4, 0, 0, 2]))
                == .checkCondition(.invalidField(inCommand: 1, bit: 2)))
    }

    @Test mutating func `SYNCHRONIZE CACHE flushes, with IMMED in the background`() {
        #expect(unit.execute(cdb([0x35])) == .operation(.flush))
        #expect(unit.execute(cdb([0x91])) == .operation(.flush))
        #expect(unit.execute(cdb([0x35, 2])) == .operation(.flushInBackground))
        #expect(readOnly.execute(cdb([0x35])) == .good)
    }

    // MARK: - Unmapping

    static func unmapList(_ ranges: [(UInt64, UInt32)]) -> [UInt8] {
        var list: [UInt8] = []
        list.append(bigEndian: UInt16(6 + 16 * ranges.count))
        list.append(bigEndian: UInt16(16 * ranges.count))
        list += [0, 0, 0, 0]
        for (block, count) in ranges {
            list.append(bigEndian: block)
            list.append(bigEndian: count)
            list += [0, 0, 0, 0]
        }
        return list
    }

    @Test mutating func `UNMAP decodes its block descriptors`() {
        let command = cdb([0x42, 0, 0, 0, 0, 0, 0, 0, 40])
        #expect(unit.execute(command) == .receiveParameters(40))
        #expect(
            unit.execute(command, parameters: Self.unmapList([(8, 8), (2040, 8)]))
                == .operation(.unmap([Extent(block: 8, count: 8), Extent(block: 2040, count: 8)])))
        #expect(unit.execute(command, parameters: Self.unmapList([(8, 0)])) == .good)
        #expect(unit.execute(command, parameters: Self.unmapList([])) == .good)
        #expect(unit.execute(cdb([0x42])) == .good)
    }

    @Test mutating func `UNMAP refuses invalid fields and ranges`() {
        let command = cdb([0x42, 0, 0, 0, 0, 0, 0, 0, 40])
        #expect(
            unit.execute(cdb([0x42, 1, 0, 0, 0, 0, 0, 0, 24]))
                == .checkCondition(.invalidField(inCommand: 1, bit: 0)))
        #expect(readOnly.execute(command) == .checkCondition(.writeProtected))
        for (first, count) in [(2048, 1), (2047, 2), (UInt64.max, 1), (0, UInt32.max)] {
            #expect(
                unit.execute(command, parameters: Self.unmapList([(first, count)]))
                    == .checkCondition(.blockOutOfRange))
        }
        #expect(
            unit.execute(command, parameters: [0, 0, 0])
                == .checkCondition(.parameterListLengthError))
        let many = [(UInt64, UInt32)](repeating: (0, 1), count: 257)
        #expect(
            unit.execute(command, parameters: Self.unmapList(many))
                == .checkCondition(.invalidField(inParameters: 2)))
        let exactly = unit.execute(
            command, parameters: Self.unmapList(Array(many.dropLast())))
        #expect(exactly != .checkCondition(.invalidField(inParameters: 2)))
    }

    @Test mutating func `UNMAP ignores an incomplete block descriptor`() {
        let list = Array(Self.unmapList([(8, 8), (16, 8)]).dropLast(4))
        #expect(
            unit.execute(cdb([0x42, 0, 0, 0, 0, 0, 0, 0, 36]), parameters: list)
                == .operation(.unmap([Extent(block: 8, count: 8)])))
    }

    @Test mutating func `UNMAP is limited to the maximum LBA count`() {
        var large = LogicalUnit(
            identity: InquiryIdentity(serialNumber: ""), blockCount: 1 << 39, isReadOnly: false,
            writeCache: true)
        let command = cdb([0x42, 0, 0, 0, 0, 0, 0, 0, 24])
        #expect(
            large.execute(command, parameters: Self.unmapList([(0, 0x80_0000)]))
                == .operation(.unmap([Extent(block: 0, count: 0x80_0000)])))
        #expect(
            large.execute(command, parameters: Self.unmapList([(0, 0x80_0001)]))
                == .checkCondition(.invalidField(inParameters: 16)))
    }

    @Test mutating func `WRITE SAME fills a range with a block or zeroes`() {
        let extent = Extent(block: 16, count: 32)
        let command = cdb([0x93, 0x08, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 32])
        #expect(unit.execute(command) == .receiveParameters(512))
        let zeroes = [UInt8](repeating: 0, count: 512)
        #expect(
            unit.execute(command, parameters: zeroes)
                == .operation(.fill(extent, block: nil, mayUnmap: true)))
        let pattern = [UInt8](repeating: 3, count: 512)
        #expect(
            unit.execute(cdb([0x41, 0, 0, 0, 0, 16, 0, 0, 32]), parameters: pattern)
                == .operation(.fill(extent, block: pattern, mayUnmap: false)))
        // NDOB: no data-out buffer.
        #expect(
            unit.execute(cdb([0x93, 0x01, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 32]))
                == .operation(.fill(extent, block: nil, mayUnmap: false)))
    }

    @Test mutating func `WRITE SAME refuses invalid fields and ranges`() {
        #expect(
            unit.execute(cdb([0x41, 0x01, 0, 0, 0, 0, 0, 0, 1]))
                == .checkCondition(.invalidField(inCommand: 1, bit: 0)))
        #expect(
            unit.execute(cdb([0x93, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]))
                == .checkCondition(.invalidField(inCommand: 1, bit: 4)))
        #expect(unit.execute(cdb([0x41])) == .checkCondition(.invalidField(inCommand: 7)))
        #expect(unit.execute(cdb([0x93])) == .checkCondition(.invalidField(inCommand: 10)))
        #expect(
            readOnly.execute(cdb([0x41, 0, 0, 0, 0, 0, 0, 0, 1]))
                == .checkCondition(.writeProtected))
        var large = LogicalUnit(
            identity: InquiryIdentity(serialNumber: ""), blockCount: 1 << 39, isReadOnly: false,
            writeCache: true)
        #expect(
            large.execute(cdb([0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]))
                == .receiveParameters(512))
        #expect(
            large.execute(cdb([0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1]))
                == .checkCondition(.invalidField(inCommand: 10)))
    }

    // MARK: - Capacity

    @Test mutating func `READ CAPACITY (10) and (16) report size and provisioning`() {
        #expect(unit.execute(cdb([0x25])) == .reply([0, 0, 7, 0xff, 0, 0, 2, 0]))
        var expected = [UInt8](repeating: 0, count: 32)
        expected.replaceSubrange(6..<12, with: [7, 0xff, 0, 0, 2, 0])
        expected[13] = 3
        expected[14] = 0xc0
        let long = cdb([0x9e, 0x10], at: [13: 32])
        #expect(unit.execute(long) == .reply(expected))
        expected[14] = 0
        #expect(readOnly.execute(long) == .reply(expected))
        #expect(unit.execute(cdb([0x9e, 0x10], at: [13: 12])) == .reply(Array(expected[..<12])))
    }

    @Test mutating func `READ CAPACITY (10) of a 2^48 byte medium reports FFFFFFFFh`() {
        var large = LogicalUnit(
            identity: InquiryIdentity(serialNumber: ""), blockCount: 1 << 39, isReadOnly: false,
            writeCache: true)
        #expect(
            large.execute(cdb([0x25])) == .reply([0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0]))
        guard case .reply(let bytes) = large.execute(cdb([0x9e, 0x10], at: [13: 32])) else {
            Issue.record("no capacity")
            return
        }
        #expect(bytes.bigEndian(0..<8) == (1 << 39) - 1)
        #expect(
            large.execute(
                cdb([0x88, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1]))
                == .read(Extent(block: (1 << 39) - 1, count: 1)))
        #expect(
            large.execute(cdb([0x88, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 1]))
                == .checkCondition(.blockOutOfRange))
    }

    @Test mutating func `READ CAPACITY refuses an address without PMI`() {
        #expect(
            unit.execute(cdb([0x25, 0, 0, 0, 0, 1])) == .checkCondition(.invalidField(inCommand: 2))
        )
        #expect(
            unit.execute(cdb([0x25, 0, 0, 0, 0, 1], at: [8: 1]))
                != .checkCondition(.invalidField(inCommand: 2)))
        #expect(
            unit.execute(cdb([0x9e, 0x10, 1], at: [13: 32]))
                == .checkCondition(.invalidField(inCommand: 2)))
    }

    @Test mutating func `READ FORMAT CAPACITIES reports whether a medium is present`() {
        let command = cdb([0x23], at: [8: 252])
        #expect(unit.execute(command) == .reply([0, 0, 0, 8, 0, 0, 8, 0, 2, 0, 2, 0]))
        unit.mediumOperationCompleted(.eject)
        #expect(unit.execute(command) == .reply([0, 0, 0, 8, 0, 0, 8, 0, 3, 0, 2, 0]))
    }

    // MARK: - Medium

    @Test
    mutating func `an ejected medium is not present until it is loaded with one unit attention`() {
        let ready = cdb([0x00])
        #expect(unit.execute(cdb([0x1b, 0, 0, 0, 2])) == .operation(.eject))
        unit.mediumOperationCompleted(.eject)
        for command in [
            ready, cdb([0x28, 0, 0, 0, 0, 0, 0, 0, 1]), cdb([0x25]),
            cdb([0x2a, 0, 0, 0, 0, 0, 0, 0, 1]), cdb([0x35]),
            cdb([0x9e, 0x10], at: [13: 32]),
        ] {
            #expect(unit.execute(command) == .checkCondition(.mediumNotPresent))
        }
        #expect(unit.execute(cdb([0x1b, 0, 0, 0, 2])) == .good)
        #expect(unit.execute(cdb([0x1b, 0, 0, 0, 3])) == .good)
        #expect(unit.execute(cdb([0x12], at: [4: 36])) != .checkCondition(.mediumMayHaveChanged))
        #expect(unit.execute(ready) == .checkCondition(.mediumMayHaveChanged))
        #expect(unit.execute(ready) == .good)
    }

    @Test mutating func `PREVENT ALLOW MEDIUM REMOVAL prevents an eject`() {
        #expect(unit.execute(cdb([0x1e, 0, 0, 0, 1])) == .good)
        #expect(unit.execute(cdb([0x1b, 0, 0, 0, 2])) == .checkCondition(.removalPrevented))
        #expect(unit.execute(cdb([0x1e, 0, 0, 0, 0])) == .good)
        #expect(unit.execute(cdb([0x1b, 0, 0, 0, 2])) == .operation(.eject))
        #expect(
            unit.execute(cdb([0x1e, 0, 0, 0, 2]))
                == .checkCondition(.invalidField(inCommand: 4, bit: 1)))
    }

    @Test mutating func `a reset loads an ejected medium with a unit attention`() {
        unit.mediumOperationCompleted(.eject)
        unit.reset()
        #expect(unit.execute(cdb([0x00])) == .checkCondition(.mediumMayHaveChanged))
        #expect(unit.execute(cdb([0x00])) == .good)
        unit.reset()
        #expect(unit.execute(cdb([0x00])) == .good)
    }

    @Test mutating func `a fixed disk refuses an eject`() {
        var identity = InquiryIdentity(serialNumber: "")
        identity.isRemovable = false
        var fixed = LogicalUnit(
            identity: identity, blockCount: 1, isReadOnly: false, writeCache: true)
        #expect(
            fixed.execute(cdb([0x1b, 0, 0, 0, 2]))
                == .checkCondition(.invalidField(inCommand: 4, bit: 1)))
        guard case .reply(let bytes) = fixed.execute(cdb([0x12], at: [4: 36])) else {
            Issue.record("no inquiry")
            return
        }
        #expect(bytes[1] == 0)
    }

    @Test mutating func `START STOP UNIT flushes when it stops`() {
        #expect(unit.execute(cdb([0x1b])) == .operation(.flush))
        #expect(unit.execute(cdb([0x1b, 0, 0, 0, 1])) == .good)
        #expect(unit.execute(cdb([0x1b, 0, 0, 0, 0x30])) == .operation(.flush))
    }

    // MARK: - Errors

    @Test
    mutating func
        `unknown operation codes and service actions are refused`()
    {
        for code in UInt8.min...UInt8.max {
            let isKnown = SCSICommand.all.contains { $0.operationCode == code }
            let action = unit.execute(
                CommandDescriptorBlock([code] + [UInt8](repeating: 0, count: 15)))
            #expect((action == .checkCondition(.invalidCommand)) == !isKnown, "code \(code)")
        }
        #expect(
            unit.execute(cdb([0x9e, 0x1f])) == .checkCondition(.invalidField(inCommand: 1, bit: 4)))
        #expect(
            unit.execute(cdb([0xa3, 0x05])) == .checkCondition(.invalidField(inCommand: 1, bit: 4)))
    }

    @Test mutating func `a CDB that is too short is refused at its end`() {
        #expect(
            unit.execute(CommandDescriptorBlock([0x28, 0, 0, 0, 0, 0]))
                == .checkCondition(.invalidField(inCommand: 6))
        )
        // Some hosts send a longer CDB.
        #expect(
            unit.execute(CommandDescriptorBlock([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]))
                == .read(Extent(block: 0, count: 1)))
    }

    @Test mutating func `REQUEST SENSE clears the sense data`() {
        _ = unit.execute(cdb([0xff]))
        let sense = cdb([0x03, 0, 0, 0, 18])
        #expect(unit.execute(sense) == .reply(SenseData.invalidCommand.fixedFormat))
        #expect(unit.execute(sense) == .reply(SenseData.none.fixedFormat))
        _ = unit.execute(cdb([0xff]))
        _ = unit.execute(cdb([0x00]))
        #expect(unit.execute(sense) == .reply(SenseData.none.fixedFormat))
    }

    @Test mutating func `REQUEST SENSE with DESC returns descriptor format`() {
        _ = unit.execute(cdb([0x28, 0x20]))
        #expect(
            unit.execute(cdb([0x03, 1, 0, 0, 252]))
                == .reply([0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xcd, 0, 1, 0]))
    }

    @Test mutating func `REQUEST SENSE reports a medium that is not present`() {
        unit.mediumOperationCompleted(.eject)
        #expect(
            unit.execute(cdb([0x03, 0, 0, 0, 18]))
                == .reply(SenseData.mediumNotPresent.fixedFormat))
    }

    @Test func `fixed format has the layout of the standard`() {
        #expect(
            SenseData.unrecoveredReadError(block: 0x0102_0304).fixedFormat == [
                0xf0, 0, 3, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0,
            ])
        #expect(
            SenseData.invalidField(inParameters: 0x105, bit: 3).fixedFormat == [
                0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x26, 0, 0, 0x8b, 1, 5,
            ])
        #expect(
            SenseData.invalidField(inCommand: 7).fixedFormat.suffix(3) == [0xc0, 0, 7])
        var deferred = SenseData.writeError(block: nil)
        deferred.isDeferred = true
        #expect(deferred.fixedFormat[0] == 0x71)
        #expect(deferred.descriptorFormat[0] == 0x73)
    }

    @Test func `a block address of more than 32 bits is only in descriptor format`() {
        let sense = SenseData.unrecoveredReadError(block: 1 << 33)
        #expect(sense.fixedFormat[0] == 0x70)
        #expect(
            sense.descriptorFormat == [
                0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 2, 0, 0, 0, 0,
            ])
    }

    @Test mutating func `the next command reports a deferred error once`() {
        unit.backgroundFlushFailed(.writeError(block: nil))
        guard case .reply = unit.execute(cdb([0x12], at: [4: 36])) else {
            Issue.record("INQUIRY must always be answered")
            return
        }
        guard case .checkCondition(let sense) = unit.execute(cdb([0x28, 0, 0, 0, 0, 0, 0, 0, 1]))
        else {
            Issue.record("the error is lost")
            return
        }
        #expect(sense.isDeferred)
        #expect(sense.code == 0x0c00)
        #expect(unit.execute(cdb([0x00])) == .good)
    }

    @Test mutating func `other logical units are not supported`() {
        #expect(unit.execute(cdb([0x00]), at: 1) == .checkCondition(.logicalUnitNotSupported))
        guard case .reply(let bytes) = unit.execute(cdb([0x12], at: [4: 36]), at: 1) else {
            Issue.record("no inquiry")
            return
        }
        #expect(bytes[0] == 0x7f)
        #expect(
            unit.execute(cdb([0x03, 0, 0, 0, 18]), at: 1)
                == .reply(SenseData.logicalUnitNotSupported.fixedFormat))
    }
}
