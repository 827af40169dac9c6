// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// The logical unit: a SCSI direct-access block device (SPC-4, SBC-3), without input or output.
///
/// ``execute(_:at:)`` validates a command and returns the ``Action`` that the device executes.
/// ``mediumOperationCompleted(_:)`` changes the state that depends on the success of a medium
/// operation.
///
/// A port reset establishes no unit attention condition (29h): the host requested the reset, and
/// would log the condition as an error.
struct LogicalUnit {
    /// The result of a command's validation: its status, or the data transfer or medium operation
    /// that it needs.
    enum Action: Equatable {
        /// GOOD status, without a data stage.
        case good
        /// Data-In bytes, truncated to the allocation length.
        case reply([UInt8])
        case read(Extent)
        /// - Parameter durably: the data must be on the disk before the status is sent.
        case write(Extent, durably: Bool)
        /// VERIFY with BYTCHK: Data-Out bytes are compared with the medium.
        case compare(Extent)
        /// A parameter list of this many bytes; ``execute(_:parameters:)`` continues with it.
        case receiveParameters(Int)
        /// A medium operation, without a data stage.
        case operation(MediumOperation)
        case checkCondition(SenseData)
    }

    let identity: InquiryIdentity
    /// CMDQUE: the transport queues commands, as UAS does.
    var supportsCommandQueuing = false
    /// The number of blocks of the medium, or of the previous one if there is no medium.
    private(set) var blockCount: UInt64
    private(set) var isReadOnly: Bool
    /// WCE at power-on.
    let defaultWriteCache: Bool

    /// WCE: the status of a write may be sent before the data is on the disk.
    var isWriteCacheEnabled: Bool
    /// The medium is inserted and loaded; commands can access it.
    private(set) var isMediumPresent = true
    /// The operator has inserted a medium. The host can eject and load it.
    private var isMediumInserted = true
    /// PREVENT: the host has locked the medium.
    private(set) var isRemovalPrevented = false
    /// Sense data of the last command, until REQUEST SENSE or the next command clears them.
    private var sense = SenseData.none
    /// The error of a command whose status was sent before it occurred (SPC-4, 4.5.7).
    private var deferredError: SenseData?
    private var unitAttention: SenseData?

    init(identity: InquiryIdentity, blockCount: UInt64, isReadOnly: Bool, writeCache: Bool) {
        precondition(blockCount > 0, "a medium has at least one block")
        self.identity = identity
        self.blockCount = blockCount
        self.isReadOnly = isReadOnly
        defaultWriteCache = writeCache
        isWriteCacheEnabled = writeCache
    }

    /// Resets the unit to its power-on state, as a port reset does. A medium that the guest has
    /// ejected is loaded again, since a restarted guest has no other way to reach it.
    ///
    /// A write cache that the guest has disabled stays disabled: no unit attention reports the
    /// reset, so the guest would go on without flushing.
    mutating func reset() {
        loadMedium()
        isRemovalPrevented = false
        isWriteCacheEnabled = isWriteCacheEnabled && defaultWriteCache
        sense = .none
    }

    /// LOGICAL UNIT RESET, a task management function of UAS. It establishes a unit attention
    /// condition.
    mutating func resetUnit() {
        isRemovalPrevented = false
        sense = .none
        unitAttention = .resetOccurred
    }

    // MARK: - Commands

    /// Executes a command up to its data stage.
    mutating func execute(_ cdb: CommandDescriptorBlock, at logicalUnit: UInt8 = 0) -> Action {
        catchSense { (unit: inout Self) throws(SenseData) in
            try unit.dispatch(cdb, at: logicalUnit)
        }
    }

    /// Executes a command whose parameter list has arrived.
    mutating func execute(_ cdb: CommandDescriptorBlock, parameters: [UInt8]) -> Action {
        catchSense { (unit: inout Self) throws(SenseData) in
            switch SCSICommand.named(by: cdb)?.name {
            case .modeSelect6: return try unit.modeSelect(cdb, parameters, isShort: true)
            case .modeSelect10: return try unit.modeSelect(cdb, parameters, isShort: false)
            case .unmap: return try unit.unmap(parameters)
            case .writeSame10, .writeSame16: return try unit.writeSame(cdb, pattern: parameters)
            default: throw .invalidCommand
            }
        }
    }

    /// Keeps the sense data of a command that failed during its data stage or medium operation.
    mutating func setSense(_ error: SenseData) { sense = error }

    /// Clears the sense data after they have been sent to the host.
    mutating func clearSense() { sense = .none }

    /// Applies the effect of a medium operation that has succeeded.
    mutating func mediumOperationCompleted(_ operation: MediumOperation) {
        switch operation {
        case .eject: isMediumPresent = false
        case .disableWriteCache: isWriteCacheEnabled = false
        default: break
        }
    }

    // MARK: - Medium

    /// Removes the medium on the operator's request; later commands report MEDIUM NOT PRESENT.
    mutating func removeMedium() {
        isMediumInserted = false
        isMediumPresent = false
    }

    /// Inserts a medium on the operator's request. The host's next command reports it as a unit
    /// attention.
    mutating func insertMedium(blockCount: UInt64, isReadOnly: Bool) {
        precondition(blockCount > 0, "a medium has at least one block")
        self.blockCount = blockCount
        self.isReadOnly = isReadOnly
        isMediumInserted = true
        isMediumPresent = false
        loadMedium()
    }

    private mutating func loadMedium() {
        guard isMediumInserted, !isMediumPresent else { return }
        isMediumPresent = true
        unitAttention = .mediumMayHaveChanged
    }

    /// Keeps the error of a background flush; the next command reports it as a deferred error.
    mutating func backgroundFlushFailed(_ error: SenseData) {
        deferredError = error
        deferredError?.isDeferred = true
    }

    private mutating func catchSense(
        _ body: (inout Self) throws(SenseData) -> Action
    ) -> Action {
        do throws(SenseData) {
            return try body(&self)
        } catch {
            sense = error
            return .checkCondition(error)
        }
    }

    private mutating func dispatch(
        _ cdb: CommandDescriptorBlock, at logicalUnit: UInt8
    ) throws(SenseData) -> Action {
        let command = SCSICommand.named(by: cdb)
        guard logicalUnit == 0 else { return try executeAtMissingUnit(command, cdb) }
        switch command?.name {
        case .inquiry, .reportLogicalUnits: sense = .none
        case .requestSense: break
        default:
            sense = .none
            if let error = deferredError {
                deferredError = nil
                throw error
            }
            if let attention = unitAttention {
                unitAttention = nil
                throw attention
            }
        }
        guard let command else {
            // Only the service action is unknown.
            let isKnown = SCSICommand.all.contains { $0.operationCode == cdb.operationCode }
            throw isKnown ? .invalidField(inCommand: 1, bit: 4) : .invalidCommand
        }
        guard cdb.count >= command.usage.count else {
            throw .invalidField(inCommand: cdb.count)
        }
        return try execute(command.name, cdb)
    }

    private mutating func execute(
        _ command: SCSICommand.Name, _ cdb: CommandDescriptorBlock
    ) throws(SenseData) -> Action {
        switch command {
        case .testUnitReady:
            try requireMedium()
            return .good
        case .requestSense: return requestSense(cdb)
        case .inquiry: return try inquiry(cdb)
        case .readFormatCapacities: return readFormatCapacities(cdb)
        case .modeSense6: return try modeSense(cdb, isShort: true)
        case .modeSense10: return try modeSense(cdb, isShort: false)
        case .modeSelect6: return try prepareModeSelect(cdb, length: Int(cdb[4]))
        case .modeSelect10: return try prepareModeSelect(cdb, length: Int(cdb[7..<9]))
        case .startStopUnit: return try startStopUnit(cdb)
        case .sendDiagnostic: return try sendDiagnostic(cdb)
        case .preventAllowMediumRemoval: return try preventAllowMediumRemoval(cdb)
        case .reportLogicalUnits: return try reportLogicalUnits(cdb)
        case .reportSupportedOperationCodes: return try reportSupportedOperationCodes(cdb)
        case .readCapacity10: return try readCapacity10(cdb)
        case .readCapacity16: return try readCapacity16(cdb)
        case .read6, .read10, .read12, .read16: return try read(cdb)
        case .write6, .write10, .write12, .write16: return try write(cdb)
        case .writeAndVerify10, .writeAndVerify12, .writeAndVerify16:
            return try writeAndVerify(cdb)
        case .verify10, .verify12, .verify16: return try verify(cdb)
        case .synchronizeCache10, .synchronizeCache16: return try synchronizeCache(cdb)
        case .unmap: return try prepareUnmap(cdb)
        case .writeSame10, .writeSame16: return try prepareWriteSame(cdb)
        }
    }

    /// Executes a command for an incorrect logical unit number (SPC-4, 5.11): a few commands report
    /// in their data that there is no such unit.
    private mutating func executeAtMissingUnit(
        _ command: SCSICommand?, _ cdb: CommandDescriptorBlock
    ) throws(SenseData) -> Action {
        switch command?.name {
        case .inquiry:
            var bytes = standardInquiry
            bytes[0] = 0x7f
            return .reply(bytes.truncated(to: Int(cdb[3..<5])))
        case .requestSense:
            return .reply(
                SenseData.logicalUnitNotSupported.fixedFormat.truncated(to: Int(cdb[4])))
        case .reportLogicalUnits: return try reportLogicalUnits(cdb)
        default: throw .logicalUnitNotSupported
        }
    }

    // MARK: - Conditions

    func requireMedium() throws(SenseData) {
        guard isMediumPresent else { throw .mediumNotPresent }
    }

    func requireWritable() throws(SenseData) {
        try requireMedium()
        guard !isReadOnly else { throw .writeProtected }
    }

    // MARK: - Small commands

    /// REQUEST SENSE (SPC-4, 6.39). The condition that it reports is cleared.
    private mutating func requestSense(_ cdb: CommandDescriptorBlock) -> Action {
        var reported = sense
        if reported == .none, let deferredError {
            reported = deferredError
            self.deferredError = nil
        } else if reported == .none, let unitAttention {
            reported = unitAttention
            self.unitAttention = nil
        } else if reported == .none, !isMediumPresent {
            reported = .mediumNotPresent
        }
        sense = .none
        let bytes = cdb.isSet(1, bit: 0) ? reported.descriptorFormat : reported.fixedFormat
        return .reply(bytes.truncated(to: Int(cdb[4])))
    }

    /// START STOP UNIT (SBC-3, 5.25). Stopping the unit only flushes the cache.
    private mutating func startStopUnit(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        let powerCondition = cdb[4] >> 4
        let loadsOrEjects = cdb.isSet(4, bit: 1)
        let starts = cdb.isSet(4, bit: 0)
        guard powerCondition == 0 else { return isMediumPresent ? .operation(.flush) : .good }
        guard loadsOrEjects else {
            if !starts { return isMediumPresent ? .operation(.flush) : .good }
            try requireMedium()
            return .good
        }
        guard identity.isRemovable else { throw .invalidField(inCommand: 4, bit: 1) }
        if starts {
            loadMedium()
            try requireMedium()
            return .good
        }
        guard !isRemovalPrevented else { throw .removalPrevented }
        return isMediumPresent ? .operation(.eject) : .good
    }

    /// PREVENT ALLOW MEDIUM REMOVAL (SBC-3, 5.15).
    private mutating func preventAllowMediumRemoval(
        _ cdb: CommandDescriptorBlock
    ) throws(SenseData) -> Action {
        try cdb.requireZero(4, mask: 0x02)
        isRemovalPrevented = cdb.isSet(4, bit: 0)
        return .good
    }

    /// SEND DIAGNOSTIC (SPC-4, 6.42). Only the default self-test is supported; it passes.
    private func sendDiagnostic(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        try cdb.requireZero(1, mask: 0xe3)
        try cdb.requireZero(3)
        try cdb.requireZero(4)
        return .good
    }

    /// REPORT LUNS (SPC-4, 6.33).
    private func reportLogicalUnits(_ cdb: CommandDescriptorBlock) throws(SenseData) -> Action {
        var bytes: [UInt8]
        switch cdb[2] {
        case 0, 2:
            bytes = [UInt8](repeating: 0, count: 16)
            bytes[3] = 8
        case 1: bytes = [UInt8](repeating: 0, count: 8)
        default: throw .invalidField(inCommand: 2)
        }
        return .reply(bytes.truncated(to: Int(cdb[6..<10])))
    }

    /// REPORT SUPPORTED OPERATION CODES (SPC-4, 6.35).
    private func reportSupportedOperationCodes(
        _ cdb: CommandDescriptorBlock
    ) throws(SenseData) -> Action {
        let wantsTimeouts = cdb.isSet(2, bit: 7)
        // The length, then nominal and recommended timeouts, both unspecified.
        let timeouts: [UInt8] = wantsTimeouts ? [0, 10] + [UInt8](repeating: 0, count: 10) : []
        let allocation = Int(cdb[6..<10])
        let option = cdb[2] & 7
        if option == 0 {
            var list: [UInt8] = []
            for command in SCSICommand.all {
                let flags: UInt8 =
                    (command.serviceAction != nil ? 1 : 0) | (wantsTimeouts ? 2 : 0)
                list += [command.operationCode, 0, 0, command.serviceAction ?? 0, 0, flags]
                list.append(bigEndian: UInt16(command.usage.count))
                list += timeouts
            }
            var bytes: [UInt8] = []
            bytes.append(bigEndian: UInt32(list.count))
            return .reply((bytes + list).truncated(to: allocation))
        }
        guard option <= 3 else { throw .invalidField(inCommand: 2, bit: 2) }
        let action = cdb[4..<6]
        let command = SCSICommand.all.first { $0.operationCode == cdb[3] }
        let hasActions = command?.serviceAction != nil
        // The reporting option must name a service action exactly if the command has one.
        if command != nil, option == 1 && hasActions || option == 2 && !hasActions {
            throw .invalidField(inCommand: 4)
        }
        let isSupported =
            command != nil
            && (!hasActions
                ? action == 0 || option == 1 : UInt64(command?.serviceAction ?? 0) == action)
        var bytes: [UInt8] = [0, isSupported ? 3 : 1]
        if isSupported, let command {
            if wantsTimeouts { bytes[1] |= 0x80 }
            bytes.append(bigEndian: UInt16(command.usage.count))
            var usage = command.usage
            if let action = command.serviceAction { usage[1] = action }
            bytes += usage + timeouts
        } else {
            bytes += [0, 0]
        }
        return .reply(bytes.truncated(to: allocation))
    }
}

extension [UInt8] {
    /// Parameter data truncated to the allocation length of a CDB.
    func truncated(to length: Int) -> [UInt8] { count <= length ? self : Array(prefix(length)) }
}
