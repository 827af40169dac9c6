// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import USB

/// What a host sends down the command pipe of USB Attached SCSI: an information unit (UAS, 6.2).
struct UASRequest: Equatable {
    /// The largest unit that means something here: a command with the shortest CDB field. Longer CDBs
    /// belong to commands that the logical unit does not have.
    static let count = 32

    enum Content: Equatable {
        case command(CommandBlock, unit: UInt8, isFirst: Bool)
        case function(UASFunction?, unit: UInt8, of: UInt16)
        /// It is none, or too short.
        case invalid
    }

    /// The host's name of the command, and the stream on which it is answered.
    let tag: UInt16
    let content: Content

    /// `nil` for what has not even a tag.
    init?(_ bytes: Span<UInt8>) {
        guard bytes.count >= 4 else { return nil }
        tag = bytes.bigEndian(at: 2)
        switch bytes[0] {
        case 0x01 where bytes.count >= 32:
            let isHeadOfQueue = bytes[4] & 7 == 1
            content = .command(
                CommandBlock(bytes.extracting(16..<32)), unit: Self.unit(bytes),
                isFirst: isHeadOfQueue)
        case 0x05 where bytes.count >= 16:
            content = .function(
                UASFunction(rawValue: bytes[4]), unit: Self.unit(bytes),
                of: bytes.bigEndian(at: 6))
        default: content = .invalid
        }
    }

    /// The logical unit's number (SAM-5, 4.7); all but 0 are missing here, so one stands for them.
    private static func unit(_ bytes: Span<UInt8>) -> UInt8 {
        (8..<16).allSatisfy { bytes[$0] == 0 } ? 0 : 1
    }
}

/// Task management functions (UAS, table 21).
enum UASFunction: UInt8 {
    case abortTask = 0x01
    case abortTaskSet = 0x02
    case clearTaskSet = 0x04
    case logicalUnitReset = 0x08
    case nexusReset = 0x10
    case clearAutoContingentAllegiance = 0x40
    case queryTask = 0x80
    case queryTaskSet = 0x81
}

/// What the device says on the status pipe about the command of a tag (UAS, 6.2).
struct UASReply: Equatable {
    enum Content: Equatable {
        /// The command is done.
        case good
        /// It failed: CHECK CONDITION.
        case check(SenseData)
        /// There are too many before it: TASK SET FULL.
        case taskSetFull
        /// The answer to a task management function, or to what could not be understood.
        case response(Response)
        /// Data may move now; only without streams.
        case ready(Direction)
    }

    /// RESPONSE CODE (UAS, table 20).
    enum Response: UInt8 {
        case complete = 0x00
        case invalidUnit = 0x02
        case notSupported = 0x04
        case succeeded = 0x08
        case incorrectLogicalUnit = 0x09
        case overlappedTag = 0x0a
    }

    let tag: UInt16
    let content: Content

    /// Whether it is about a command, rather than a request.
    var isOfCommand: Bool {
        if case .response = content { return false }
        return true
    }

    var isReady: Bool {
        if case .ready = content { return true }
        return false
    }

    var bytes: [UInt8] {
        var bytes: [UInt8]
        switch content {
        case .good: bytes = Self.sense(status: 0x00, [])
        case .check(let sense): bytes = Self.sense(status: 0x02, sense.shortestFormat)
        case .taskSetFull: bytes = Self.sense(status: 0x28, [])
        case .response(let response): bytes = [0x04, 0, 0, 0, 0, 0, 0, response.rawValue]
        case .ready(let direction): bytes = [direction == .in ? 0x06 : 0x07, 0, 0, 0]
        }
        bytes.store(bigEndian: tag, at: 2)
        return bytes
    }

    /// SENSE information unit.
    private static func sense(status: UInt8, _ data: [UInt8]) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 16)
        bytes[0] = 0x03
        bytes[6] = status
        bytes[15] = UInt8(clamping: data.count)
        return bytes + data
    }
}
