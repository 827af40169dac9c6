// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// What a message asks for. Any number may arrive.
///
/// Specification: the protocol document's table "Commands".
public struct Command: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt16

    public init(rawValue: UInt16) { self.rawValue = rawValue }

    public static let version = Command(rawValue: 1)
    public static let dmaMap = Command(rawValue: 2)
    public static let dmaUnmap = Command(rawValue: 3)
    public static let deviceGetInfo = Command(rawValue: 4)
    public static let deviceGetRegionInfo = Command(rawValue: 5)
    public static let deviceGetRegionIOFDs = Command(rawValue: 6)
    public static let deviceGetIRQInfo = Command(rawValue: 7)
    public static let deviceSetIRQs = Command(rawValue: 8)
    public static let regionRead = Command(rawValue: 9)
    public static let regionWrite = Command(rawValue: 10)
    /// From the server to the client.
    public static let dmaRead = Command(rawValue: 11)
    /// From the server to the client.
    public static let dmaWrite = Command(rawValue: 12)
    public static let deviceReset = Command(rawValue: 13)
    /// In old versions of the protocol only.
    public static let dirtyPages = Command(rawValue: 14)
    public static let regionWriteMulti = Command(rawValue: 15)
    public static let deviceFeature = Command(rawValue: 16)
    public static let migrationDataRead = Command(rawValue: 17)
    public static let migrationDataWrite = Command(rawValue: 18)
}

/// The sixteen bytes that every message begins with.
///
/// Specification: the protocol document's section "Header".
public struct MessageHeader: Equatable, Sendable {
    /// Its size in bytes.
    public static let size = 16

    /// Bits 0 to 3 of the flags say what kind of message this is.
    public struct Flags: OptionSet, Sendable {
        public let rawValue: UInt32

        public init(rawValue: UInt32) { self.rawValue = rawValue }

        /// Type 1 in bits 0 to 3: the answer to a message of the same number.
        public static let reply = Flags(rawValue: 1)
        /// Bit 4: no answer is wanted.
        public static let noReply = Flags(rawValue: 1 << 4)
        /// Bit 5: the request failed, and ``MessageHeader/error`` may say why.
        public static let error = Flags(rawValue: 1 << 5)

        /// Bits 0 to 3.
        public var type: UInt32 { rawValue & 0xf }
    }

    /// Chosen by the sender of the request and repeated in the reply.
    public var id: UInt16
    public var command: Command
    /// Bytes of the message, header included.
    public var size: UInt32
    public var flags: Flags
    /// An errno.
    public var error: UInt32

    public init(id: UInt16, command: Command, size: UInt32, flags: Flags = [], error: UInt32 = 0) {
        self.id = id
        self.command = command
        self.size = size
        self.flags = flags
        self.error = error
    }

    /// Reads the header at the beginning of `bytes`, which has at least ``size`` of them.
    init(_ bytes: Span<UInt8>) {
        id = bytes.littleEndian(at: 0)
        command = Command(rawValue: bytes.littleEndian(at: 2))
        size = bytes.littleEndian(at: 4)
        flags = Flags(rawValue: bytes.littleEndian(at: 8))
        error = bytes.littleEndian(at: 12)
    }
}

// MARK: - Payloads

// Offsets count from the end of the header, as in the protocol document. The field `argsz` says how
// long a reply the client expects; clients count it in different ways (with and without the header),
// and every reply of ours is as short as its command allows, so it is not looked at.

/// DMA_MAP: 32 bytes.
struct DMAMapRequest {
    let flags: UInt32
    let offset: UInt64
    let address: UInt64
    let count: UInt64

    init?(_ payload: Span<UInt8>) {
        guard payload.count >= 32 else { return nil }
        flags = payload.littleEndian(at: 4)
        offset = payload.littleEndian(at: 8)
        address = payload.littleEndian(at: 16)
        count = payload.littleEndian(at: 24)
    }
}

/// DMA_UNMAP: 24 bytes, in the reply as well.
struct DMAUnmapRequest {
    static let size = 24

    struct Flags: OptionSet {
        let rawValue: UInt32

        /// Bit 0: report which pages were written.
        static let getDirtyBitmap = Flags(rawValue: 1 << 0)
        /// Bit 1: everything; address and count are zero.
        static let all = Flags(rawValue: 1 << 1)
    }

    let flags: Flags
    let address: UInt64
    let count: UInt64

    init?(_ payload: Span<UInt8>) {
        guard payload.count >= Self.size else { return nil }
        flags = Flags(rawValue: payload.littleEndian(at: 4))
        address = payload.littleEndian(at: 8)
        count = payload.littleEndian(at: 16)
    }
}

/// DEVICE_SET_IRQS: 20 bytes and an array of booleans.
struct SetIRQsRequest {
    static let size = 20

    struct Flags: OptionSet {
        let rawValue: UInt32

        static let dataNone = Flags(rawValue: 1 << 0)
        static let dataBool = Flags(rawValue: 1 << 1)
        static let dataEventFD = Flags(rawValue: 1 << 2)
        static let actionMask = Flags(rawValue: 1 << 3)
        static let actionUnmask = Flags(rawValue: 1 << 4)
        static let actionTrigger = Flags(rawValue: 1 << 5)

        static let anyData: Flags = [.dataNone, .dataBool, .dataEventFD]
        static let anyAction: Flags = [.actionMask, .actionUnmask, .actionTrigger]
    }

    let flags: Flags
    let index: Int
    let start: Int
    let count: Int

    init?(_ payload: Span<UInt8>) {
        guard payload.count >= Self.size else { return nil }
        flags = Flags(rawValue: payload.littleEndian(at: 4))
        index = Int(payload.littleEndian(UInt32.self, at: 8))
        start = Int(payload.littleEndian(UInt32.self, at: 12))
        count = Int(payload.littleEndian(UInt32.self, at: 16))
    }
}

/// REGION_READ and REGION_WRITE, and an element of REGION_WRITE_MULTI: 16 bytes, then data.
struct RegionAccess {
    static let size = 16

    let offset: UInt64
    let region: UInt32
    let count: UInt32

    /// Reads the fields from `place` on; the caller has checked that they are there.
    init(_ payload: Span<UInt8>, at place: Int = 0) {
        offset = payload.littleEndian(at: place)
        region = payload.littleEndian(at: place + 8)
        count = payload.littleEndian(at: place + 12)
    }
}

/// An element of REGION_WRITE_MULTI is as long as its longest data requires.
enum RegionWriteMulti {
    static let headerSize = 8
    static let elementSize = 24
    static let longestData = 8
}
