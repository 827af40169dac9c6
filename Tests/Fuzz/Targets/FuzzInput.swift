// SPDX-License-Identifier: Apache-2.0

/// The fuzzer's bytes, read from the front.
///
/// Reads past the end return zeroes, so that each prefix of an input is an input.
public struct FuzzInput {
    private let bytes: [UInt8]
    private var offset = 0

    public init(_ bytes: [UInt8]) { self.bytes = bytes }

    var isAtEnd: Bool { offset >= bytes.count }

    mutating func byte() -> UInt8 {
        guard offset < bytes.count else { return 0 }
        defer { offset += 1 }
        return bytes[offset]
    }

    mutating func flag() -> Bool { byte() & 1 != 0 }

    /// An integer, least significant byte first.
    mutating func integer<Value: FixedWidthInteger>(_ type: Value.Type = Value.self) -> Value {
        var value: Value = 0
        for index in 0..<Value.bitWidth / 8 { value |= Value(byte()) << Value(index * 8) }
        return value
    }

    /// A number in the range, from one or two bytes.
    ///
    /// - Parameter range: at most 65536 numbers.
    mutating func number(_ range: ClosedRange<Int>) -> Int {
        let count = range.count
        let word = count <= 256 ? Int(byte()) : Int(integer(UInt16.self))
        return range.lowerBound + word % count
    }

    mutating func pick<Element>(_ choices: [Element]) -> Element {
        choices[number(0...choices.count - 1)]
    }

    /// A count, and then that number of bytes or the rest of the input.
    mutating func bytes(atMost limit: Int) -> [UInt8] {
        let count = min(number(0...limit), bytes.count - offset)
        defer { offset += count }
        return Array(bytes[offset..<offset + count])
    }

    mutating func rest() -> [UInt8] {
        defer { offset = bytes.count }
        return Array(bytes[offset...])
    }

    /// A boundary value: a small number, a power of two, the end of 32 or 64 bits, or any number.
    mutating func edge() -> UInt64 {
        let kind = byte()
        switch kind >> 5 {
        case 0: return UInt64(kind & 0x1f)
        case 1: return UInt64(kind & 0x1f) << 12
        case 2: return UInt64.max - UInt64(kind & 0x1f)
        case 3: return 1 << UInt64(kind & 0x3f)
        case 4: return UInt64(UInt32.max) - 8 + UInt64(kind & 0x1f)
        case 5: return UInt64(integer(UInt16.self))
        default: return integer()
        }
    }
}
