// SPDX-License-Identifier: Apache-2.0

/// The fuzzer's bytes, taken from the front. Behind their end everything is zero, so that every
/// beginning of an input is an input.
public struct FuzzInput {
    private let bytes: [UInt8]
    private var place = 0

    public init(_ bytes: [UInt8]) { self.bytes = bytes }

    var isAtEnd: Bool { place >= bytes.count }

    mutating func byte() -> UInt8 {
        guard place < bytes.count else { return 0 }
        defer { place += 1 }
        return bytes[place]
    }

    mutating func flag() -> Bool { byte() & 1 != 0 }

    /// An integer, least significant byte first.
    mutating func integer<Value: FixedWidthInteger>(_ type: Value.Type = Value.self) -> Value {
        var value: Value = 0
        for index in 0..<Value.bitWidth / 8 { value |= Value(byte()) << Value(index * 8) }
        return value
    }

    /// A number of a range, of which every one can be reached with two bytes.
    mutating func number(_ range: ClosedRange<Int>) -> Int {
        let count = range.count
        let word = count <= 256 ? Int(byte()) : Int(integer(UInt16.self))
        return range.lowerBound + word % count
    }

    mutating func pick<Element>(_ choices: [Element]) -> Element {
        choices[number(0...choices.count - 1)]
    }

    /// A byte that says how many, then as many bytes as there are.
    mutating func bytes(atMost limit: Int) -> [UInt8] {
        let count = min(number(0...limit), bytes.count - place)
        defer { place += count }
        return Array(bytes[place..<place + count])
    }

    mutating func rest() -> [UInt8] {
        defer { place = bytes.count }
        return Array(bytes[place...])
    }

    /// A number where numbers go wrong: small, at an edge, or any.
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
