// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// Pieces of memory in order, as the kernel's scattering and gathering calls take them.
///
/// It owns nothing: whoever makes one keeps the memory alive and mapped for as long as it is used,
/// which is what lets it travel to another thread.
@safe
public struct IOVectors: @unchecked Sendable {
    /// Nearly always there is one piece, so that it costs no allocation.
    private var first: iovec?
    private var rest: [iovec] = unsafe []

    /// The bytes in all pieces.
    public private(set) var count = 0

    /// No memory.
    public init() {}

    /// The number of pieces.
    public var pieceCount: Int { unsafe first == nil ? 0 : rest.count + 1 }

    /// Adds memory at the end.
    public mutating func append(_ bytes: UnsafeMutableRawBufferPointer) {
        guard bytes.count > 0 else { return }
        let piece = unsafe iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
        count += bytes.count
        if unsafe first == nil { unsafe first = piece } else { unsafe rest.append(piece) }
    }

    /// The pieces without their first `skipped` bytes, and no more than `limit` bytes of them.
    public func slice(from skipped: Int, limit: Int = .max) -> IOVectors {
        var result = IOVectors()
        var skip = skipped
        var left = limit
        unsafe forEach { bytes in
            let start = min(skip, bytes.count)
            skip -= start
            let length = min(bytes.count - start, left)
            left -= length
            unsafe result.append(
                UnsafeMutableRawBufferPointer(rebasing: bytes[start..<start + length]))
        }
        return result
    }

    /// Calls `body` with each piece in order.
    public func forEach<E: Error>(
        _ body: (UnsafeMutableRawBufferPointer) throws(E) -> Void
    ) throws(E) {
        guard let first = unsafe first else { return }
        unsafe try body(UnsafeMutableRawBufferPointer(start: first.iov_base, count: first.iov_len))
        for index in unsafe rest.indices {
            let piece = unsafe rest[index]
            unsafe try body(
                UnsafeMutableRawBufferPointer(start: piece.iov_base, count: piece.iov_len))
        }
    }

    /// Whether every piece begins and ends at a multiple of `alignment` bytes.
    public func isAligned(to alignment: Int) -> Bool {
        var aligned = true
        unsafe forEach { bytes in
            let start = Int(bitPattern: bytes.baseAddress)
            if (start | bytes.count) & (alignment - 1) != 0 { aligned = false }
        }
        return aligned
    }

    /// Calls `body` with as many pieces as one system call takes.
    func withVectors(
        _ body: (UnsafePointer<iovec>, CInt) -> Int
    ) -> Int {
        guard var first = unsafe first else { return 0 }
        guard pieceCount > 1 else { return unsafe body(&first, 1) }
        let vectors = unsafe [first] + rest.prefix(Self.maxVectors - 1)
        return unsafe vectors.withUnsafeBufferPointer { buffer in
            guard let start = buffer.baseAddress else { return 0 }
            return unsafe body(start, CInt(buffer.count))
        }
    }

    /// `UIO_MAXIOV`.
    private static let maxVectors = 1024
}
