// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// A list of memory segments for scatter-gather I/O; see readv(2).
///
/// It does not own the memory. The caller keeps every segment allocated and mapped while the list
/// is in use, on any thread.
@safe
public struct IOVectors: @unchecked Sendable {
    /// Stored apart from the others: most lists have one segment and need no allocation.
    private var first: iovec?
    private var rest: [iovec] = unsafe []

    /// The total length of all segments in bytes.
    public private(set) var count = 0

    /// Creates an empty list.
    public init() {}

    private var segmentCount: Int { unsafe first == nil ? 0 : rest.count + 1 }

    /// Appends a segment; an empty one is ignored.
    public mutating func append(_ bytes: UnsafeMutableRawBufferPointer) {
        guard bytes.count > 0 else { return }
        let segment = unsafe iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
        count += bytes.count
        if unsafe first == nil { unsafe first = segment } else { unsafe rest.append(segment) }
    }

    /// A part of the list, which refers to the same memory; nothing is copied.
    ///
    /// - Parameters:
    ///   - skipped: the number of bytes to leave out at the beginning.
    ///   - limit: the number of bytes in the part, at most.
    /// - Returns: the part, which is shorter than `limit` if this list ends before.
    public func slice(from skipped: Int, limit: Int = .max) -> IOVectors {
        var result = IOVectors()
        var skip = skipped
        var left = limit
        unsafe forEachSegment { bytes in
            let start = min(skip, bytes.count)
            skip -= start
            let length = min(bytes.count - start, left)
            left -= length
            unsafe result.append(
                UnsafeMutableRawBufferPointer(rebasing: bytes[start..<start + length]))
        }
        return result
    }

    /// Calls `body` with each segment, in order.
    ///
    /// - Throws: the first error that `body` throws.
    public func forEachSegment<E: Error>(
        _ body: (UnsafeMutableRawBufferPointer) throws(E) -> Void
    ) throws(E) {
        guard let first = unsafe first else { return }
        unsafe try body(UnsafeMutableRawBufferPointer(start: first.iov_base, count: first.iov_len))
        for index in unsafe rest.indices {
            let segment = unsafe rest[index]
            unsafe try body(
                UnsafeMutableRawBufferPointer(start: segment.iov_base, count: segment.iov_len))
        }
    }

    /// Whether the address and the length of every segment are multiples of `alignment`, a power of
    /// two, as `O_DIRECT` requires (open(2)).
    public func isAligned(to alignment: Int) -> Bool {
        var aligned = true
        unsafe forEachSegment { bytes in
            let start = Int(bitPattern: bytes.baseAddress)
            if (start | bytes.count) & (alignment - 1) != 0 { aligned = false }
        }
        return aligned
    }

    /// Calls `body` with as many of the segments as one system call takes.
    ///
    /// - Returns: the result of `body`; 0 if the list is empty.
    func withVectors(
        _ body: (UnsafePointer<iovec>, CInt) -> Int
    ) -> Int {
        guard var first = unsafe first else { return 0 }
        guard segmentCount > 1 else { return unsafe body(&first, 1) }
        let vectors = unsafe [first] + rest.prefix(Self.maxVectors - 1)
        return unsafe vectors.withUnsafeBufferPointer { buffer in
            guard let start = buffer.baseAddress else { return 0 }
            return unsafe body(start, CInt(buffer.count))
        }
    }

    /// `UIO_MAXIOV` (readv(2)).
    private static let maxVectors = 1024
}
