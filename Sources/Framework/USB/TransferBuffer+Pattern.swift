// SPDX-License-Identifier: Apache-2.0

/// For devices whose data is a pattern: it is written and checked where it is, without a copy in
/// between and without an allocation.
extension TransferBuffer {
    /// Writes `block` again and again into the first `wanted` bytes.
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

    /// The first byte that is not what ``fill(_:repeating:)`` would have written.
    ///
    /// If the guest changes its memory meanwhile, the offset is approximate.
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

    /// Compares two pieces of the same length, 64 bytes at a time as long as they are equal.
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
            // Past the block that differed: the guest has put it right behind our back.
            if index == start + 63 { return (start, byte) }
        }
        return nil
    }

    /// Copies bytes from `offset` on to a range of `target`, as many as the buffer has.
    ///
    /// - Returns: how many.
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
