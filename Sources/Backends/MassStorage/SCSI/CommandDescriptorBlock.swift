// SPDX-License-Identifier: Apache-2.0

/// A command descriptor block (CDB): an operation code and big-endian fields (SPC-4, 4.2).
struct CommandDescriptorBlock: Equatable {
    private let bytes: InlineArray<16, UInt8>
    /// The bytes that the host sent, at most 16; the bytes behind them are zero.
    let count: Int

    init(_ source: some Collection<UInt8>) {
        var bytes = InlineArray<16, UInt8>(repeating: 0)
        for (index, byte) in source.prefix(16).enumerated() { bytes[index] = byte }
        self.bytes = bytes
        count = min(source.count, 16)
    }

    init(_ source: Span<UInt8>) {
        count = min(source.count, 16)
        bytes = InlineArray { $0 < source.count ? source[$0] : 0 }
    }

    var operationCode: UInt8 { bytes[0] }

    subscript(_ index: Int) -> UInt8 { bytes[index] }

    /// The integer in a range of bytes.
    subscript(_ range: Range<Int>) -> UInt64 {
        var value: UInt64 = 0
        for index in range { value = value << 8 | UInt64(bytes[index]) }
        return value
    }

    func isSet(_ byte: Int, bit: UInt8) -> Bool { bytes[byte] & 1 << bit != 0 }

    /// Throws INVALID FIELD IN CDB if a field of an unsupported function is not zero.
    func requireZero(_ byte: Int, mask: UInt8 = 0xff) throws(SenseData) {
        let wrong = bytes[byte] & mask
        guard wrong == 0 else {
            let bit = UInt8(7 - wrong.leadingZeroBitCount)
            throw .invalidField(inCommand: byte, bit: bit)
        }
    }

    static func == (left: Self, right: Self) -> Bool {
        left.count == right.count && (0..<16).allSatisfy { left[$0] == right[$0] }
    }
}
