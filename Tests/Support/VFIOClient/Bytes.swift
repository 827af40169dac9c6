// SPDX-License-Identifier: Apache-2.0

internal import Platform

extension [UInt8] {
    /// The little-endian integer at an offset of a message under test.
    ///
    /// Bytes beyond the end count as zero, so that a message that is too short fails an expectation
    /// and does not end the test process.
    public func integer<Value: FixedWidthInteger & UnsignedInteger>(
        _ type: Value.Type = Value.self, at offset: Int
    ) -> Value {
        let field = dropFirst(offset).prefix(MemoryLayout<Value>.size)
        return (Array(field) + [UInt8](repeating: 0, count: MemoryLayout<Value>.size - field.count))
            .littleEndian(at: 0)
    }
}
