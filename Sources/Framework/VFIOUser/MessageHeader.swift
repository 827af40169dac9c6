// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// The first sixteen bytes of every message.
///
/// Specification: the protocol document's section "Header".
struct MessageHeader: Equatable, Sendable {
    /// The size of a header in bytes.
    static let size = 16

    /// The message type, and flags of requests and replies.
    struct Flags: OptionSet, Sendable {
        let rawValue: UInt32

        init(rawValue: UInt32) { self.rawValue = rawValue }

        /// Type 1 in bits 3:0: the reply to the request with the same ID. Type 0 is a request.
        static let reply = Flags(rawValue: 1)
        /// Bit 4: the client expects no reply.
        static let noReply = Flags(rawValue: 1 << 4)
        /// Bit 5: the request failed, and ``MessageHeader/error`` may hold the cause.
        static let error = Flags(rawValue: 1 << 5)

        /// The message type, bits 3:0.
        var type: UInt32 { rawValue & 0xf }
    }

    /// Chosen by the sender of a request and repeated in the reply.
    var id: UInt16
    var command: Command
    /// The size of the message in bytes, header included.
    var size: UInt32
    var flags: Flags
    /// An errno of the replying side, if ``Flags-swift.struct/error`` is set.
    var error: UInt32

    init(id: UInt16, command: Command, size: UInt32, flags: Flags = [], error: UInt32 = 0) {
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
