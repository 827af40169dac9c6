// SPDX-License-Identifier: Apache-2.0

extension Array where Element == UInt8 {
    /// Adds an integer, least significant byte first.
    public mutating func append<Value: FixedWidthInteger & UnsignedInteger>(integer value: Value) {
        for index in 0..<MemoryLayout<Value>.size {
            append(UInt8(truncatingIfNeeded: value >> Value(8 * index)))
        }
    }

    /// The integer at an offset, least significant byte first; what is not there counts as zero.
    public func integer<Value: FixedWidthInteger & UnsignedInteger>(
        _ type: Value.Type = Value.self, at offset: Int
    ) -> Value {
        var value: Value = 0
        for index in 0..<MemoryLayout<Value>.size where offset + index < count {
            value |= Value(self[offset + index]) << Value(8 * index)
        }
        return value
    }

    /// The bytes of an integer, least significant first.
    public init<Value: FixedWidthInteger & UnsignedInteger>(integer value: Value) {
        self = []
        append(integer: value)
    }
}
