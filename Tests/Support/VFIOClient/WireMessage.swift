// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// A vfio-user message: a header of 16 bytes and a payload.
///
/// Its constants are defined apart from the server's, so that an error in either is found.
public struct WireMessage: Equatable, Sendable {
    public enum Command {
        public static let version: UInt16 = 1
        public static let dmaMap: UInt16 = 2
        public static let dmaUnmap: UInt16 = 3
        public static let getInfo: UInt16 = 4
        public static let getRegionInfo: UInt16 = 5
        public static let getRegionIOFDs: UInt16 = 6
        public static let getIRQInfo: UInt16 = 7
        public static let setIRQs: UInt16 = 8
        public static let regionRead: UInt16 = 9
        public static let regionWrite: UInt16 = 10
        public static let dmaRead: UInt16 = 11
        public static let dmaWrite: UInt16 = 12
        public static let reset: UInt16 = 13
        public static let dirtyPages: UInt16 = 14
        public static let regionWriteMulti: UInt16 = 15
        public static let deviceFeature: UInt16 = 16
    }

    public static let reply: UInt32 = 1
    public static let noReply: UInt32 = 1 << 4
    public static let error: UInt32 = 1 << 5

    public var id: UInt16
    public var command: UInt16
    public var flags: UInt32
    public var error: UInt32
    public var payload: [UInt8]

    public init(
        id: UInt16, command: UInt16, flags: UInt32 = 0, error: UInt32 = 0, payload: [UInt8] = []
    ) {
        self.id = id
        self.command = command
        self.flags = flags
        self.error = error
        self.payload = payload
    }

    /// Parses a whole message.
    public init(bytes: [UInt8]) {
        id = bytes.integer(at: 0)
        command = bytes.integer(at: 2)
        flags = bytes.integer(at: 8)
        error = bytes.integer(at: 12)
        payload = Array(bytes.dropFirst(16))
    }

    public var isReply: Bool { flags & 0xf == Self.reply }
    public var isError: Bool { flags & Self.error != 0 }
    /// The size in bytes, header included.
    public var size: Int { 16 + payload.count }

    public var bytes: [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(littleEndian: id)
        bytes.append(littleEndian: command)
        bytes.append(littleEndian: UInt32(size))
        bytes.append(littleEndian: flags)
        bytes.append(littleEndian: error)
        return bytes + payload
    }
}

// MARK: - Payloads

extension WireMessage {
    public static func version(major: UInt16 = 0, minor: UInt16, json: [UInt8]) -> [UInt8] {
        Array(littleEndian: major) + Array(littleEndian: minor) + json
    }

    public static func dmaMap(
        flags: UInt32, offset: UInt64, address: UInt64, size: UInt64
    ) -> [UInt8] {
        Array(littleEndian: UInt32(32)) + Array(littleEndian: flags) + Array(littleEndian: offset)
            + Array(littleEndian: address) + Array(littleEndian: size)
    }

    public static func dmaUnmap(flags: UInt32 = 0, address: UInt64, size: UInt64) -> [UInt8] {
        Array(littleEndian: UInt32(24)) + Array(littleEndian: flags) + Array(littleEndian: address)
            + Array(littleEndian: size)
    }

    public static func getInfo(argsz: UInt32) -> [UInt8] {
        Array(littleEndian: argsz) + [UInt8](repeating: 0, count: 12)
    }

    public static func regionInfo(index: UInt32) -> [UInt8] {
        Array(littleEndian: UInt32(32)) + Array(littleEndian: UInt32(0))
            + Array(littleEndian: index)
            + [UInt8](repeating: 0, count: 20)
    }

    public static func irqInfo(index: UInt32) -> [UInt8] {
        Array(littleEndian: UInt32(16)) + Array(littleEndian: UInt32(0))
            + Array(littleEndian: index)
            + Array(littleEndian: UInt32(0))
    }

    public static func setIRQs(
        flags: UInt32, index: UInt32, start: UInt32, count: UInt32, data: [UInt8] = []
    ) -> [UInt8] {
        Array(littleEndian: UInt32(20 + data.count)) + Array(littleEndian: flags)
            + Array(littleEndian: index)
            + Array(littleEndian: start) + Array(littleEndian: count) + data
    }

    public static func region(
        _ index: UInt32, offset: UInt64, count: UInt32, data: [UInt8] = []
    ) -> [UInt8] {
        Array(littleEndian: offset) + Array(littleEndian: index) + Array(littleEndian: count) + data
    }
}

/// Flags of SET_IRQS (`VFIO_IRQ_SET_*`): one for the kind of data, one for the action.
public enum IRQSet {
    public static let dataNone: UInt32 = 1 << 0
    public static let dataBool: UInt32 = 1 << 1
    public static let dataEventFD: UInt32 = 1 << 2
    public static let mask: UInt32 = 1 << 3
    public static let unmask: UInt32 = 1 << 4
    public static let trigger: UInt32 = 1 << 5
}
