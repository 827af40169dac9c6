// SPDX-License-Identifier: Apache-2.0

/// Access for devices whose data is a pattern or comes from memory of their own: without an
/// intermediate copy and without an allocation.
extension TransferBuffer {
    /// Fills the first `wanted` bytes with copies of `block`, one after the other.
    public func fill(_ wanted: Int, repeating block: Span<UInt8>) {
        var left = min(wanted, count)
        var phase = 0
        unsafe block.withUnsafeBytes { source in
            guard let from = source.baseAddress, source.count > 0 else { return }
            unsafe forEachSegment { segment in
                guard let start = segment.baseAddress else { return }
                let end = min(segment.count, left)
                var done = 0
                while done < end {
                    let length = min(end - done, source.count - phase)
                    unsafe (start + done).copyMemory(from: from + phase, byteCount: length)
                    done += length
                    phase += length
                    if phase == source.count { phase = 0 }
                }
                left -= end
            }
        }
    }

    /// Writes `byte` into the first `wanted` bytes.
    public func fill(_ wanted: Int, with byte: UInt8) {
        var left = min(wanted, count)
        unsafe forEachSegment { segment in
            let length = min(segment.count, left)
            guard length > 0 else { return }
            unsafe UnsafeMutableRawBufferPointer(rebasing: segment[..<length])
                .initializeMemory(as: UInt8.self, repeating: byte)
            left -= length
        }
    }

    /// The first byte that differs from the result of ``fill(_:repeating:)``.
    ///
    /// If the guest changes the memory during the comparison, the offset may be up to 63 bytes off.
    public func firstDifference(
        from block: Span<UInt8>
    ) -> (offset: Int, byte: UInt8)? {
        var result: (offset: Int, byte: UInt8)?
        var position = 0
        var phase = 0
        unsafe block.withUnsafeBytes { expected in
            guard expected.count > 0 else { return }
            unsafe forEachSegment { segment in
                var done = 0
                while done < segment.count, result == nil {
                    let length = min(segment.count - done, expected.count - phase)
                    let part = unsafe UnsafeRawBufferPointer(
                        rebasing: segment[done..<done + length])
                    let pattern = unsafe UnsafeRawBufferPointer(
                        rebasing: expected[phase..<phase + length])
                    if let found = unsafe Self.firstDifference(part, pattern) {
                        result = (position + found.offset, found.byte)
                    }
                    done += length
                    position += length
                    phase += length
                    if phase == expected.count { phase = 0 }
                }
            }
        }
        return result
    }

    /// Compares memory of the same length, 64 bytes at a time while they are equal.
    private static func firstDifference(
        _ one: UnsafeRawBufferPointer, _ other: UnsafeRawBufferPointer
    ) -> (offset: Int, byte: UInt8)? {
        let count = min(one.count, other.count)
        var start = 0
        while start + 64 <= count {
            let left = unsafe one.loadUnaligned(fromByteOffset: start, as: SIMD8<UInt64>.self)
            let right = unsafe other.loadUnaligned(fromByteOffset: start, as: SIMD8<UInt64>.self)
            if left != right { break }
            start += 64
        }
        for index in start..<count {
            let byte = unsafe one[index]
            if unsafe byte != other[index] { return (index, byte) }
            // The end of the block that differed: the guest has changed it since.
            if index == start + 63 { return (start, byte) }
        }
        return nil
    }

    /// Copies bytes from `offset` on to the indices `range` of `target`, where both have bytes.
    ///
    /// - Returns: the number of bytes copied.
    @discardableResult
    public func copy(
        to target: inout MutableSpan<UInt8>, _ range: Range<Int>, from offset: Int = 0
    ) -> Int {
        let range = range.clamped(to: 0..<target.count)
        var done = 0
        let source = slice(from: offset, count: range.count)
        unsafe target.withUnsafeMutableBytes { bytes in
            guard let start = bytes.baseAddress else { return }
            unsafe source.forEachSegment { segment in
                guard let from = segment.baseAddress else { return }
                unsafe (start + range.lowerBound + done).copyMemory(
                    from: from, byteCount: segment.count)
                done += segment.count
            }
        }
        return done
    }
}
