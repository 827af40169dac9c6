// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// The logical unit of a stick: a SCSI direct-access block device (SPC-4, SBC-3), without input or
/// output.
///
/// ``execute(_:at:)`` decides what a command means; the device then moves the data. State that
/// depends on the success of that work is changed by ``mediumJobEnded(_:)``.
///
/// A port reset is not reported as a unit attention (29h): the host made it itself, and its log
/// would show a fault where there is none.
struct LogicalUnit {
    /// What INQUIRY tells of the stick.
    struct Identity: Sendable {
        /// At most 8 printable ASCII characters.
        var vendor = "usbvfiod"
        /// At most 16.
        var product = "Storage"
        /// At most 4.
        var revision = "1.0"
        var serialNumber: String
        var isRemovable = true
    }

    /// What a command wants done.
    enum Action: Equatable {
        /// It is done.
        case good
        /// It has data for the host, cut to the allocation length.
        case reply([UInt8])
        case read(Extent)
        case write(Extent, durably: Bool)
        /// Data of the host are to be compared with the medium.
        case compare(Extent)
        /// It needs a parameter list of so many bytes; then ``execute(_:parameters:)``.
        case receiveParameters(Int)
        /// It needs the medium, without data for the host or from it.
        case perform(MediumJob)
        /// It cannot be done.
        case check(SenseData)
    }

    /// Work on the medium that may take a while.
    enum MediumJob: Equatable, Sendable {
        case flush
        /// The host does not wait; an error is reported with a later command.
        case flushInBackground
        /// Flushes, then takes the medium out.
        case eject
        /// Flushes, then turns the write cache off.
        case disableWriteCache
        /// Reads without telling what.
        case verify(Extent)
        /// Gives ranges back.
        case unmap([Extent])
        /// Writes a block over and over; `nil` is zeroes.
        case fill(Extent, block: [UInt8]?, mayUnmap: Bool)

        /// For the operator.
        var words: String {
            switch self {
            case .flush, .flushInBackground, .eject, .disableWriteCache: "flushing"
            case .verify: "verifying"
            case .unmap: "giving blocks back"
            case .fill: "filling blocks"
            }
        }
    }

    let identity: Identity
    /// The transport has commands wait here, as UAS does.
    var takesManyCommands = false
    /// Of the medium, or of the last one if there is none.
    private(set) var blockCount: UInt64
    private(set) var isReadOnly: Bool
    /// What the cache is set to at first.
    let defaultWriteCache: Bool

    /// WCE: a write may be answered before it is on the disk.
    var isWriteCacheEnabled: Bool
    /// There is a medium, and the host has not taken it out.
    private(set) var isMediumPresent = true
    /// There is a medium, which the host can take out and put in again.
    private var isMediumThere = true
    /// The host has asked that the medium be left where it is.
    private(set) var isRemovalPrevented = false
    /// Of the last command, until it is fetched or another command comes.
    private var sense = SenseData.none
    /// Of a command that was answered before.
    private var deferredError: SenseData?
    private var unitAttention: SenseData?

    init(identity: Identity, blockCount: UInt64, isReadOnly: Bool, writeCache: Bool) {
        precondition(blockCount > 0, "a medium has at least one block")
        self.identity = identity
        self.blockCount = blockCount
        self.isReadOnly = isReadOnly
        defaultWriteCache = writeCache
        isWriteCacheEnabled = writeCache
    }

    /// A reset of the port: as when plugged in. A medium that the guest has taken out is back, as after
    /// the guest's restart nobody could put it in.
    ///
    /// A write cache that the guest has turned off stays off: since no unit attention tells of the
    /// reset, it would go on without flushing.
    mutating func reset() {
        loadMedium()
        isRemovalPrevented = false
        isWriteCacheEnabled = isWriteCacheEnabled && defaultWriteCache
        sense = .none
    }

    /// A reset of the logical unit alone, by a request of UAS: the host hears of it, as others might.
    mutating func resetUnit() {
        isRemovalPrevented = false
        sense = .none
        unitAttention = .wasReset
    }

    // MARK: - Commands

    /// Begins a command.
    mutating func execute(_ block: CommandBlock, at logicalUnit: UInt8 = 0) -> Action {
        catchSense { (unit: inout Self) throws(SenseData) in
            try unit.dispatch(block, at: logicalUnit)
        }
    }

    /// Goes on with a command whose parameter list has come.
    mutating func execute(_ block: CommandBlock, parameters: [UInt8]) -> Action {
        catchSense { (unit: inout Self) throws(SenseData) in
            switch SCSICommand.named(by: block)?.name {
            case .modeSelect6: return try unit.modeSelect(block, parameters, isShort: true)
            case .modeSelect10: return try unit.modeSelect(block, parameters, isShort: false)
            case .unmap: return try unit.unmap(parameters)
            case .writeSame10, .writeSame16: return try unit.writeSame(block, pattern: parameters)
            default: throw .invalidCommand
            }
        }
    }

    /// The command at work failed after all.
    mutating func fail(_ error: SenseData) { sense = error }

    /// The host has the sense data of the last command.
    mutating func senseWasSent() { sense = .none }

    /// A job has ended well.
    mutating func mediumJobEnded(_ job: MediumJob) {
        switch job {
        case .eject: isMediumPresent = false
        case .disableWriteCache: isWriteCacheEnabled = false
        default: break
        }
    }

    // MARK: - Medium

    /// The operator takes the medium: commands find none from now on.
    mutating func removeMedium() {
        isMediumThere = false
        isMediumPresent = false
    }

    /// The operator has put in a medium, another one or the same; the host learns of it with its
    /// next command.
    mutating func insertMedium(blockCount: UInt64, isReadOnly: Bool) {
        precondition(blockCount > 0, "a medium has at least one block")
        self.blockCount = blockCount
        self.isReadOnly = isReadOnly
        isMediumThere = true
        isMediumPresent = false
        loadMedium()
    }

    private mutating func loadMedium() {
        guard isMediumThere, !isMediumPresent else { return }
        isMediumPresent = true
        unitAttention = .mediumMayHaveChanged
    }

    /// A job that nobody waits for has failed.
    mutating func backgroundJobFailed(_ error: SenseData) {
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
            return .check(error)
        }
    }

    private mutating func dispatch(
        _ block: CommandBlock, at logicalUnit: UInt8
    ) throws(SenseData) -> Action {
        let command = SCSICommand.named(by: block)
        guard logicalUnit == 0 else { return try answerForMissingUnit(command, block) }
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
            // The code is known, only the service action is not.
            let isKnown = SCSICommand.all.contains { $0.operationCode == block.operationCode }
            throw isKnown ? .invalidField(inCommand: 1, bit: 4) : .invalidCommand
        }
        guard block.count >= command.usage.count else {
            throw .invalidField(inCommand: block.count)
        }
        return try carryOut(command.name, block)
    }

    private mutating func carryOut(
        _ command: SCSICommand.Name, _ block: CommandBlock
    ) throws(SenseData) -> Action {
        switch command {
        case .testUnitReady:
            try requireMedium()
            return .good
        case .requestSense: return requestSense(block)
        case .inquiry: return try inquiry(block)
        case .readFormatCapacities: return readFormatCapacities(block)
        case .modeSense6: return try modeSense(block, isShort: true)
        case .modeSense10: return try modeSense(block, isShort: false)
        case .modeSelect6: return try prepareModeSelect(block, length: Int(block[4]))
        case .modeSelect10: return try prepareModeSelect(block, length: Int(block[7..<9]))
        case .startStopUnit: return try startStopUnit(block)
        case .sendDiagnostic: return try sendDiagnostic(block)
        case .preventAllowMediumRemoval: return try preventAllowMediumRemoval(block)
        case .reportLogicalUnits: return try reportLogicalUnits(block)
        case .reportSupportedOperationCodes: return try reportSupportedOperationCodes(block)
        case .readCapacity10: return try readCapacity10(block)
        case .readCapacity16: return try readCapacity16(block)
        case .read6, .read10, .read12, .read16: return try read(block)
        case .write6, .write10, .write12, .write16: return try write(block)
        case .writeAndVerify10, .writeAndVerify12, .writeAndVerify16:
            return try writeAndVerify(block)
        case .verify10, .verify12, .verify16: return try verify(block)
        case .synchronizeCache10, .synchronizeCache16: return try synchronizeCache(block)
        case .unmap: return try prepareUnmap(block)
        case .writeSame10, .writeSame16: return try prepareWriteSame(block)
        }
    }

    /// Logical units 1...15 (SPC-4, 5.11): there is none, which some commands tell in data.
    private mutating func answerForMissingUnit(
        _ command: SCSICommand?, _ block: CommandBlock
    ) throws(SenseData) -> Action {
        switch command?.name {
        case .inquiry:
            var bytes = standardInquiry
            bytes[0] = 0x7f
            return .reply(bytes.cut(to: Int(block[3..<5])))
        case .requestSense:
            return .reply(
                SenseData.logicalUnitNotSupported.fixedFormat.cut(to: Int(block[4])))
        case .reportLogicalUnits: return try reportLogicalUnits(block)
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

    /// REQUEST SENSE (SPC-4, 6.39). What is told is forgotten.
    private mutating func requestSense(_ block: CommandBlock) -> Action {
        var told = sense
        if told == .none, let deferredError {
            told = deferredError
            self.deferredError = nil
        } else if told == .none, let unitAttention {
            told = unitAttention
            self.unitAttention = nil
        } else if told == .none, !isMediumPresent {
            told = .mediumNotPresent
        }
        sense = .none
        let bytes = block.isSet(1, bit: 0) ? told.descriptorFormat : told.fixedFormat
        return .reply(bytes.cut(to: Int(block[4])))
    }

    /// START STOP UNIT (SBC-3, 5.25). A file has nothing to spin down, but stopping is the moment to
    /// write what is cached.
    private mutating func startStopUnit(_ block: CommandBlock) throws(SenseData) -> Action {
        let powerCondition = block[4] >> 4
        let loadsOrEjects = block.isSet(4, bit: 1)
        let starts = block.isSet(4, bit: 0)
        guard powerCondition == 0 else { return isMediumPresent ? .perform(.flush) : .good }
        guard loadsOrEjects else {
            if !starts { return isMediumPresent ? .perform(.flush) : .good }
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
        return isMediumPresent ? .perform(.eject) : .good
    }

    /// PREVENT ALLOW MEDIUM REMOVAL (SBC-3, 5.15).
    private mutating func preventAllowMediumRemoval(
        _ block: CommandBlock
    ) throws(SenseData) -> Action {
        try block.requireZero(4, mask: 0x02)
        isRemovalPrevented = block.isSet(4, bit: 0)
        return .good
    }

    /// SEND DIAGNOSTIC (SPC-4, 6.42): only the default self-test, which passes.
    private func sendDiagnostic(_ block: CommandBlock) throws(SenseData) -> Action {
        try block.requireZero(1, mask: 0xe3)
        try block.requireZero(3)
        try block.requireZero(4)
        return .good
    }

    /// REPORT LUNS (SPC-4, 6.33).
    private func reportLogicalUnits(_ block: CommandBlock) throws(SenseData) -> Action {
        var bytes: [UInt8]
        switch block[2] {
        case 0, 2:
            bytes = [UInt8](repeating: 0, count: 16)
            bytes[3] = 8
        case 1: bytes = [UInt8](repeating: 0, count: 8)
        default: throw .invalidField(inCommand: 2)
        }
        return .reply(bytes.cut(to: Int(block[6..<10])))
    }

    /// REPORT SUPPORTED OPERATION CODES (SPC-4, 6.35).
    private func reportSupportedOperationCodes(
        _ block: CommandBlock
    ) throws(SenseData) -> Action {
        let wantsTimeouts = block.isSet(2, bit: 7)
        // Length, then nominal and recommended times, which are not known.
        let timeouts: [UInt8] = wantsTimeouts ? [0, 10] + [UInt8](repeating: 0, count: 10) : []
        let allocation = Int(block[6..<10])
        let option = block[2] & 7
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
            return .reply((bytes + list).cut(to: allocation))
        }
        guard option <= 3 else { throw .invalidField(inCommand: 2, bit: 2) }
        let action = block[4..<6]
        let command = SCSICommand.all.first { $0.operationCode == block[3] }
        let hasActions = command?.serviceAction != nil
        // Whether the question names a service action must agree with the command.
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
        return .reply(bytes.cut(to: allocation))
    }
}

/// Blocks in a row, known to lie on the medium.
struct Extent: Equatable, Sendable {
    var block: UInt64
    var count: UInt64

    var byteOffset: UInt64 { block * UInt64(blockSize) }
    var byteCount: Int { Int(count) * blockSize }
}

extension [UInt8] {
    /// What an allocation length leaves of parameter data.
    func cut(to length: Int) -> [UInt8] { count <= length ? self : Array(prefix(length)) }
}
