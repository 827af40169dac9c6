// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import USB

/// A command block wrapper (CBW, Bulk-Only Transport 5.1).
struct CommandBlockWrapper: Equatable {
    static let count = 31
    /// "USBC".
    static let signature: UInt32 = 0x4342_5355

    let tag: UInt32
    let transferLength: UInt32
    let direction: Direction
    let logicalUnit: UInt8
    let command: CommandDescriptorBlock

    /// Parses a CBW that is valid (6.2.1) and meaningful (6.2.2); otherwise returns `nil`.
    ///
    /// A logical unit that does not exist is accepted, since the logical unit reports it.
    init?(_ bytes: Span<UInt8>) {
        guard bytes.count == Self.count, bytes.littleEndian(at: 0) == Self.signature,
            bytes[12] & 0x7f == 0, bytes[13] & 0xf0 == 0, (1...16).contains(bytes[14])
        else { return nil }
        tag = bytes.littleEndian(at: 4)
        transferLength = bytes.littleEndian(at: 8)
        direction = bytes[12] & 0x80 != 0 ? .in : .out
        logicalUnit = bytes[13]
        command = CommandDescriptorBlock(bytes.extracting(15..<15 + Int(bytes[14])))
    }
}

/// A command status wrapper (CSW, Bulk-Only Transport 5.2).
struct CommandStatusWrapper: Equatable {
    static let count = 13
    /// "USBS".
    static let signature: UInt32 = 0x5342_5355

    let tag: UInt32
    let residue: UInt32
    let status: BulkOnlyTransport.Status

    var bytes: InlineArray<13, UInt8> {
        InlineArray { index in
            switch index {
            case 0..<4: Self.byte(index, of: Self.signature)
            case 4..<8: Self.byte(index - 4, of: tag)
            case 8..<12: Self.byte(index - 8, of: residue)
            default: status.rawValue
            }
        }
    }

    private static func byte(_ index: Int, of word: UInt32) -> UInt8 {
        UInt8(truncatingIfNeeded: word >> UInt32(index * 8))
    }
}
