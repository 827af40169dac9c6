// SPDX-License-Identifier: Apache-2.0

/// A supported command (SPC-4, SBC-3): its operation code, service action and CDB usage data, as
/// REPORT SUPPORTED OPERATION CODES reports them. ``LogicalUnit`` executes the command.
struct SCSICommand {
    enum Name {
        case testUnitReady, requestSense, readFormatCapacities, inquiry, modeSelect6, modeSense6
        case startStopUnit, sendDiagnostic, preventAllowMediumRemoval
        case readCapacity10, readCapacity16, reportLogicalUnits, reportSupportedOperationCodes
        case modeSelect10, modeSense10
        case read6, read10, read12, read16, write6, write10, write12, write16
        case writeAndVerify10, writeAndVerify12, writeAndVerify16, verify10, verify12, verify16
        case synchronizeCache10, synchronizeCache16, unmap, writeSame10, writeSame16
    }

    let name: Name
    let operationCode: UInt8
    let serviceAction: UInt8?
    /// CDB USAGE DATA: a mask of the evaluated bits for each byte; the first byte is the operation
    /// code.
    let usage: [UInt8]

    private init(_ name: Name, _ usage: [UInt8], serviceAction: UInt8? = nil) {
        self.name = name
        operationCode = usage[0]
        self.usage = usage
        self.serviceAction = serviceAction
    }

    /// The command of a CDB; `nil` if its operation code or service action is not supported.
    static func named(by cdb: CommandDescriptorBlock) -> SCSICommand? {
        let entry = index[Int(cdb.operationCode)]
        guard entry >= 0 else { return nil }
        let command = all[entry]
        guard let action = command.serviceAction else { return command }
        return action == cdb[1] & 0x1f ? command : nil
    }

    /// Indices in ``all`` by operation code, -1 for none. No two commands share an operation code.
    private static let index: [Int] = {
        var index = [Int](repeating: -1, count: 256)
        for (position, command) in all.enumerated() {
            index[Int(command.operationCode)] = position
        }
        return index
    }()

    private static let address: [UInt8] = [0xff, 0xff, 0xff, 0xff]
    private static let address64 = address + address

    /// All supported commands, in ascending order of operation codes.
    static let all: [SCSICommand] = [
        SCSICommand(.testUnitReady, [0x00, 0, 0, 0, 0, 0]),
        SCSICommand(.requestSense, [0x03, 0x01, 0, 0, 0xff, 0]),
        SCSICommand(.read6, [0x08, 0x1f, 0xff, 0xff, 0xff, 0]),
        SCSICommand(.write6, [0x0a, 0x1f, 0xff, 0xff, 0xff, 0]),
        SCSICommand(.inquiry, [0x12, 0x01, 0xff, 0xff, 0xff, 0]),
        SCSICommand(.modeSelect6, [0x15, 0x11, 0, 0, 0xff, 0]),
        SCSICommand(.modeSense6, [0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
        SCSICommand(.startStopUnit, [0x1b, 0x01, 0, 0, 0xf3, 0]),
        SCSICommand(.sendDiagnostic, [0x1d, 0x04, 0, 0, 0, 0]),
        SCSICommand(.preventAllowMediumRemoval, [0x1e, 0, 0, 0, 0x01, 0]),
        SCSICommand(.readFormatCapacities, [0x23, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        SCSICommand(.readCapacity10, [0x25, 0] + address + [0, 0, 0x01, 0]),
        SCSICommand(.read10, [0x28, 0x18] + address + [0, 0xff, 0xff, 0]),
        SCSICommand(.write10, [0x2a, 0x18] + address + [0, 0xff, 0xff, 0]),
        SCSICommand(.writeAndVerify10, [0x2e, 0x12] + address + [0, 0xff, 0xff, 0]),
        SCSICommand(.verify10, [0x2f, 0x12] + address + [0, 0xff, 0xff, 0]),
        SCSICommand(.synchronizeCache10, [0x35, 0x02] + address + [0, 0xff, 0xff, 0]),
        SCSICommand(.writeSame10, [0x41, 0x08] + address + [0, 0xff, 0xff, 0]),
        SCSICommand(.unmap, [0x42, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        SCSICommand(.modeSelect10, [0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
        SCSICommand(.modeSense10, [0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
        SCSICommand(.read16, [0x88, 0x18] + address64 + address + [0, 0]),
        SCSICommand(.write16, [0x8a, 0x18] + address64 + address + [0, 0]),
        SCSICommand(.writeAndVerify16, [0x8e, 0x12] + address64 + address + [0, 0]),
        SCSICommand(.verify16, [0x8f, 0x12] + address64 + address + [0, 0]),
        SCSICommand(.synchronizeCache16, [0x91, 0x02] + address64 + address + [0, 0]),
        SCSICommand(.writeSame16, [0x93, 0x09] + address64 + address + [0, 0]),
        SCSICommand(
            .readCapacity16, [0x9e, 0x1f] + address64 + address + [0x01, 0], serviceAction: 0x10),
        SCSICommand(.reportLogicalUnits, [0xa0, 0, 0xff, 0, 0, 0] + address + [0, 0]),
        SCSICommand(
            .reportSupportedOperationCodes,
            [0xa3, 0x1f, 0x87, 0xff, 0xff, 0xff] + address + [0, 0],
            serviceAction: 0x0c),
        SCSICommand(.read12, [0xa8, 0x18] + address + address + [0, 0]),
        SCSICommand(.write12, [0xaa, 0x18] + address + address + [0, 0]),
        SCSICommand(.writeAndVerify12, [0xae, 0x12] + address + address + [0, 0]),
        SCSICommand(.verify12, [0xaf, 0x12] + address + address + [0, 0]),
    ]
}
