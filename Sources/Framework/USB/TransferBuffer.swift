// SPDX-License-Identifier: Apache-2.0

/// The bytes of a transfer where they are: in the guest's memory, in one or several pieces.
///
/// Holding a buffer keeps its memory mapped, so a device must drop it once it has completed the
/// transfer. The guest may change the bytes at any time: copy first, then interpret.
///
/// Buffers are made, used and dropped on the event loop. A worker thread may be handed the segments
/// while the loop holds the buffer.
@safe
public struct TransferBuffer {
    @safe
    private struct Segment {
        var bytes: UnsafeMutableRawBufferPointer
        let owner: AnyObject
    }

    /// Nearly every buffer has one segment, because neighbours are merged; an empty `rest` costs no
    /// allocation.
    private var first: Segment?
    private var rest: [Segment] = []

    /// The bytes in all segments.
    public private(set) var count = 0

    /// A buffer without bytes.
    public init() {}

    /// The number of pieces that are not neighbours in this process.
    public var segmentCount: Int { first == nil ? 0 : rest.count + 1 }

    /// Adds bytes at the end; `owner` is what keeps them mapped.
    public mutating func append(_ bytes: UnsafeMutableRawBufferPointer, keeping owner: AnyObject) {
        guard let start = bytes.baseAddress, bytes.count > 0 else { return }
        count += bytes.count
        if let last = rest.last ?? first, last.owner === owner,
            let lastStart = unsafe last.bytes.baseAddress,
            unsafe lastStart + last.bytes.count == start
        {
            let merged = unsafe UnsafeMutableRawBufferPointer(
                start: lastStart, count: last.bytes.count + bytes.count)
            if rest.isEmpty {
                unsafe first = Segment(bytes: merged, owner: owner)
            } else {
                unsafe rest[rest.count - 1].bytes = merged
            }
        } else if first == nil {
            unsafe first = Segment(bytes: bytes, owner: owner)
        } else {
            unsafe rest.append(Segment(bytes: bytes, owner: owner))
        }
    }

    /// Calls `body` with each piece in order. The pointers are good until the buffer is dropped.
    public func forEachSegment<E: Error>(
        _ body: (UnsafeMutableRawBufferPointer) throws(E) -> Void
    ) throws(E) {
        guard let first else { return }
        unsafe try body(first.bytes)
        for segment in rest { unsafe try body(segment.bytes) }
    }

    /// The whole buffer as one piece of memory, if it is one.
    public var contiguousBytes: UnsafeMutableRawBufferPointer? {
        guard let first, rest.isEmpty else { return nil }
        return unsafe first.bytes
    }

    /// The part of the buffer from `offset` on, `count` bytes or as many as there are.
    public func slice(from offset: Int, count wanted: Int) -> TransferBuffer {
        var result = TransferBuffer()
        var skip = max(offset, 0)
        var left = max(wanted, 0)
        func take(_ segment: Segment) {
            let size = unsafe segment.bytes.count
            if skip >= size {
                skip -= size
                return
            }
            let length = min(size - skip, left)
            guard length > 0 else { return }
            let part = unsafe UnsafeMutableRawBufferPointer(
                rebasing: segment.bytes[skip..<skip + length])
            unsafe result.append(part, keeping: segment.owner)
            skip = 0
            left -= length
        }
        if let first { take(first) }
        for segment in rest { take(segment) }
        return result
    }

    /// Writes `bytes` from `offset` on.
    ///
    /// - Returns: how many bytes found room.
    @discardableResult
    public func copy(from bytes: Span<UInt8>, at offset: Int = 0) -> Int {
        var done = 0
        let target = slice(from: offset, count: bytes.count)
        unsafe bytes.withUnsafeBytes { source in
            unsafe target.forEachSegment { segment in
                guard let start = segment.baseAddress,
                    let from = source.baseAddress
                else { return }
                unsafe start.copyMemory(from: from + done, byteCount: segment.count)
                done += segment.count
            }
        }
        return done
    }

    /// Writes an array's bytes from `offset` on; see ``copy(from:at:)-(Span<UInt8>,_)``.
    @discardableResult
    public func copy(from bytes: [UInt8], at offset: Int = 0) -> Int {
        copy(from: bytes.span, at: offset)
    }

    /// Appends the bytes from `offset` on to `bytes`, as many as it has room for.
    public func copy(into bytes: inout OutputSpan<UInt8>, at offset: Int = 0) {
        let source = slice(from: offset, count: bytes.freeCapacity)
        unsafe source.forEachSegment { segment in
            for index in segment.indices { unsafe bytes.append(segment[index]) }
        }
    }

    /// A copy of `count` bytes from `offset` on, or as many as there are.
    public func bytes(from offset: Int = 0, count wanted: Int = .max) -> [UInt8] {
        let length = max(0, min(wanted, count - max(offset, 0)))
        guard length > 0 else { return [] }
        return unsafe [UInt8](unsafeUninitializedCapacity: length) { target, initialized in
            let part = slice(from: offset, count: length)
            unsafe part.forEachSegment { segment in
                guard let from = segment.baseAddress, let start = target.baseAddress else {
                    return
                }
                unsafe UnsafeMutableRawPointer(start + initialized).copyMemory(
                    from: from, byteCount: segment.count)
                initialized += segment.count
            }
        }
    }
}
