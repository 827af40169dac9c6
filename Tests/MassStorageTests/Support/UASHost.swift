// SPDX-License-Identifier: Apache-2.0

import Platform
import USB

@testable import MassStorage

/// A host of USB Attached SCSI without a controller.
final class UASHost {
    let host: BulkOnlyHost
    let streams: Int
    private var nextTag: UInt16 = 1

    /// - Parameter streams: 0 for a host without streams, as at high speed.
    init(_ image: any DiskImage, streams: Int = 32) throws {
        self.streams = streams
        host = try BulkOnlyHost(
            image, speed: streams > 0 ? .superSpeed : .high, offersUAS: true)
        choose()
    }

    /// Configures the streams and selects UAS by SET_INTERFACE.
    func choose() {
        for endpoint in [
            MassStorageDescriptors.statusEndpoint, MassStorageDescriptors.inEndpoint,
            MassStorageDescriptors.outEndpoint,
        ] { host.device.setStreams(streams, for: endpoint) }
        host.control(0x01, 11, value: UInt16(MassStorageDescriptors.uasSetting))
    }

    /// The transfers of a command.
    struct Submission {
        let tag: UInt16
        let status: Transfer.ID
        let data: Transfer.ID?
        let command: Transfer.ID
    }

    func freshTag() -> UInt16 {
        defer { nextTag = Int(nextTag) == max(streams, 32) ? 1 : nextTag + 1 }
        return nextTag
    }

    func status(_ tag: UInt16, room: Int = 112) -> Transfer.ID {
        host.submit(MassStorageDescriptors.statusEndpoint, kind(tag), count: room)
    }

    func data(in count: Int, _ tag: UInt16) -> Transfer.ID {
        host.submit(MassStorageDescriptors.inEndpoint, kind(tag), count: count)
    }

    func data(out bytes: [UInt8], _ tag: UInt16) -> Transfer.ID {
        host.submit(MassStorageDescriptors.outEndpoint, kind(tag), count: bytes.count, bytes: bytes)
    }

    @discardableResult
    func request(_ bytes: [UInt8]) -> Transfer.ID {
        host.submit(
            MassStorageDescriptors.commandEndpoint, .bulk(stream: 0), count: bytes.count,
            bytes: bytes)
    }

    private func kind(_ tag: UInt16) -> Transfer.Kind { .bulk(stream: streams > 0 ? tag : 0) }

    /// Submits a command with all its transfers, as Linux does with streams.
    func submit(
        _ command: [UInt8], in count: Int = 0, out bytes: [UInt8]? = nil, unit: UInt8 = 0,
        attribute: UInt8 = 0
    ) -> Submission {
        let tag = freshTag()
        let status = status(tag)
        var data: Transfer.ID?
        if let bytes { data = self.data(out: bytes, tag) }
        if count > 0 { data = self.data(in: count, tag) }
        return Submission(
            tag: tag, status: status, data: data,
            command: request(Self.command(command, tag, unit: unit, attribute: attribute)))
    }

    /// A decoded information unit of the status pipe.
    enum Answer: Equatable {
        case good
        case checkCondition(key: UInt8, code: UInt16)
        case full
        case response(UInt8)
        case ready(Direction)
        case none
    }

    /// Waits for a status transfer and decodes it; `none` if its tag is not this one.
    func answer(_ id: Transfer.ID, tag: UInt16) -> Answer {
        guard host.wait(id)?.status == .completed else { return .none }
        let bytes = host.bytes(id)
        guard bytes.count >= 4, bytes.bigEndian(at: 2) == tag else { return .none }
        switch bytes[0] {
        case 0x03 where bytes.count == 16 && bytes[6] == 0 && bytes[15] == 0: return .good
        case 0x03 where bytes.count == 16 && bytes[6] == 0x28 && bytes[15] == 0: return .full
        case 0x03 where bytes.count == 34 && bytes[6] == 2 && bytes[15] == 18:
            return .checkCondition(
                key: bytes[18] & 0xf, code: bytes.bigEndian(at: 28))
        case 0x04 where bytes.count == 8: return .response(bytes[7])
        case 0x06 where bytes.count == 4: return .ready(.in)
        case 0x07 where bytes.count == 4: return .ready(.out)
        default: return .none
        }
    }

    func answer(_ submission: Submission) -> Answer {
        answer(submission.status, tag: submission.tag)
    }

    /// Runs a command from its submission to its status, with streams or without.
    func run(_ command: [UInt8], in count: Int = 0, out bytes: [UInt8]? = nil) -> (Answer, [UInt8])
    {
        if streams > 0 {
            let submission = submit(command, in: count, out: bytes)
            let answer = answer(submission)
            return (answer, submission.data.map { host.bytes($0) } ?? [])
        }
        let tag = freshTag()
        request(Self.command(command, tag))
        var answer = answer(status(tag), tag: tag)
        var data: Transfer.ID?
        switch answer {
        case .ready(.in): data = self.data(in: count, tag)
        case .ready(.out): data = self.data(out: bytes ?? [], tag)
        default: return (answer, [])
        }
        answer = self.answer(status(tag), tag: tag)
        return (answer, data.map { host.bytes($0) } ?? [])
    }

    /// A COMMAND information unit.
    static func command(
        _ block: [UInt8], _ tag: UInt16, unit: UInt8 = 0, attribute: UInt8 = 0
    ) -> [UInt8] {
        let header: [UInt8] = [1, 0, UInt8(tag >> 8), UInt8(tag & 0xff), attribute, 0, 0, 0]
        let logicalUnit: [UInt8] = [0, unit, 0, 0, 0, 0, 0, 0]
        return header + logicalUnit + block + [UInt8](repeating: 0, count: 16 - block.count)
    }

    /// A TASK MANAGEMENT information unit.
    static func function(
        _ function: UInt8, _ tag: UInt16, of other: UInt16 = 0, unit: UInt8 = 0
    ) -> [UInt8] {
        [
            5, 0, UInt8(tag >> 8), UInt8(tag & 0xff), function, 0, UInt8(other >> 8),
            UInt8(other & 0xff), 0, unit, 0, 0, 0, 0, 0, 0,
        ]
    }
}
