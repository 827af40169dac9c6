// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import USB

/// An information unit that the host sends on the command pipe of USB Attached SCSI (UAS, 6.2):
/// COMMAND or TASK MANAGEMENT.
struct UASRequest: Equatable {
    /// The length of a COMMAND information unit without additional CDB bytes. No supported command
    /// has these, so longer units are truncated.
    static let count = 32

    enum Content: Equatable {
        /// - Parameter isHeadOfQueue: TASK ATTRIBUTE is HEAD OF QUEUE.
        case command(CommandDescriptorBlock, unit: UInt8, isHeadOfQueue: Bool)
        /// - Parameters:
        ///   - unit: the logical unit.
        ///   - tag: the command that the function applies to.
        case taskManagement(TaskManagementFunction?, unit: UInt8, tag: UInt16)
        /// An unknown or truncated information unit.
        case invalid
    }

    /// The host's identifier of the command. With streams it is also the stream of its data and
    /// status.
    let tag: UInt16
    let content: Content

    /// Parses an information unit; `nil` if it is too short to have a tag.
    init?(_ bytes: Span<UInt8>) {
        guard bytes.count >= 4 else { return nil }
        tag = bytes.bigEndian(at: 2)
        switch bytes[0] {
        case 0x01 where bytes.count >= 32:
            let isHeadOfQueue = bytes[4] & 7 == 1
            content = .command(
                CommandDescriptorBlock(bytes.extracting(16..<32)), unit: Self.unit(bytes),
                isHeadOfQueue: isHeadOfQueue)
        case 0x05 where bytes.count >= 16:
            content = .taskManagement(
                TaskManagementFunction(rawValue: bytes[4]), unit: Self.unit(bytes),
                tag: bytes.bigEndian(at: 6))
        default: content = .invalid
        }
    }

    /// The logical unit number (SAM-5, 4.7). Unit 0 is the only one, so 1 stands for all others.
    private static func unit(_ bytes: Span<UInt8>) -> UInt8 {
        (8..<16).allSatisfy { bytes[$0] == 0 } ? 0 : 1
    }
}

/// A task management function (UAS, table 21).
enum TaskManagementFunction: UInt8 {
    case abortTask = 0x01
    case abortTaskSet = 0x02
    case clearTaskSet = 0x04
    case logicalUnitReset = 0x08
    case nexusReset = 0x10
    case clearAutoContingentAllegiance = 0x40
    case queryTask = 0x80
    case queryTaskSet = 0x81
}

/// An information unit that the device sends on the status pipe (UAS, 6.2): SENSE, RESPONSE, READ
/// READY or WRITE READY.
struct UASReply: Equatable {
    enum Content: Equatable {
        /// SENSE with GOOD status.
        case good
        /// SENSE with CHECK CONDITION status.
        case checkCondition(SenseData)
        /// SENSE with TASK SET FULL status.
        case taskSetFull
        /// RESPONSE to a task management function or to an invalid request.
        case response(Response)
        /// READ READY or WRITE READY: requests a data transfer; only without streams.
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

    /// Whether the reply belongs to a command; a RESPONSE does not.
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
        case .checkCondition(let sense): bytes = Self.sense(status: 0x02, sense.shortestFormat)
        case .taskSetFull: bytes = Self.sense(status: 0x28, [])
        case .response(let response): bytes = [0x04, 0, 0, 0, 0, 0, 0, response.rawValue]
        case .ready(let direction): bytes = [direction == .in ? 0x06 : 0x07, 0, 0, 0]
        }
        bytes.store(bigEndian: tag, at: 2)
        return bytes
    }

    /// A SENSE information unit.
    private static func sense(status: UInt8, _ data: [UInt8]) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 16)
        bytes[0] = 0x03
        bytes[6] = status
        bytes[15] = UInt8(clamping: data.count)
        return bytes + data
    }
}
