// SPDX-License-Identifier: Apache-2.0

// Integers in messages. vfio-user and USB are little-endian, SCSI is big-endian; the byte order of
// the machine never matters. Offsets count bytes. An integer that is not wholly within the bytes
// traps: callers check the length of a message first.

extension Span<UInt8> {
    /// The little-endian integer at an offset.
    @inlinable @inline(__always)
    public func littleEndian<Value: FixedWidthInteger & UnsignedInteger>(
        _ type: Value.Type = Value.self, at offset: Int
    ) -> Value {
        var value: Value = 0
        for index in 0..<MemoryLayout<Value>.size {
            value |= Value(truncatingIfNeeded: self[offset + index]) << Value(8 * index)
        }
        return value
    }

    /// The big-endian integer at an offset.
    @inlinable @inline(__always)
    public func bigEndian<Value: FixedWidthInteger & UnsignedInteger>(
        _ type: Value.Type = Value.self, at offset: Int
    ) -> Value {
        littleEndian(type, at: offset).byteSwapped
    }
}

extension [UInt8] {
    /// The bytes of an integer, least significant first.
    @inlinable
    public init<Value: FixedWidthInteger & UnsignedInteger>(littleEndian value: Value) {
        self = (0..<MemoryLayout<Value>.size).map { index in
            UInt8(truncatingIfNeeded: value >> Value(8 * index))
        }
    }

    /// The bytes of an integer, most significant first.
    @inlinable
    public init<Value: FixedWidthInteger & UnsignedInteger>(bigEndian value: Value) {
        self.init(littleEndian: value.byteSwapped)
    }

    /// The little-endian integer at an offset.
    @inlinable
    public func littleEndian<Value: FixedWidthInteger & UnsignedInteger>(
        _ type: Value.Type = Value.self, at offset: Int
    ) -> Value {
        span.littleEndian(type, at: offset)
    }

    /// The big-endian integer at an offset.
    @inlinable
    public func bigEndian<Value: FixedWidthInteger & UnsignedInteger>(
        _ type: Value.Type = Value.self, at offset: Int
    ) -> Value {
        span.bigEndian(type, at: offset)
    }

    /// The big-endian integer in a range of at most eight bytes, for fields whose size is
    /// not that of a Swift integer.
    @inlinable
    public func bigEndian(_ range: Range<Int>) -> UInt64 {
        self[range].reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// Appends an integer, least significant byte first.
    @inlinable
    public mutating func append<Value: FixedWidthInteger & UnsignedInteger>(
        littleEndian value: Value
    ) {
        for index in 0..<MemoryLayout<Value>.size {
            append(UInt8(truncatingIfNeeded: value >> Value(8 * index)))
        }
    }

    /// Appends an integer, most significant byte first.
    @inlinable
    public mutating func append<Value: FixedWidthInteger & UnsignedInteger>(
        bigEndian value: Value
    ) {
        append(littleEndian: value.byteSwapped)
    }

    /// Overwrites the bytes at an offset with an integer, most significant byte first.
    @inlinable
    public mutating func store<Value: FixedWidthInteger & UnsignedInteger>(
        bigEndian value: Value, at offset: Int
    ) {
        for index in 0..<MemoryLayout<Value>.size {
            self[offset + index] = UInt8(
                truncatingIfNeeded: value >> Value(Value.bitWidth - 8 - 8 * index))
        }
    }
}
