// SPDX-License-Identifier: Apache-2.0

/// The bytes of a transfer, in guest memory or staging memory, in one or several segments.
///
/// A device accesses the bytes only on the event loop, within a call made to it or in an event
/// handler of its own: never on another thread, and never through a pointer that it has kept. The
/// controller may revoke the memory at any other moment (``MemoryLease``). A buffer whose memory is
/// revoked has no segments, so copies move nothing. The device still completes the transfer; the
/// controller then fails the TD, or ignores the completion if it has removed the TD.
///
/// The guest may change the bytes at any time: copy first, then interpret.
@safe
public struct TransferBuffer {
    private let lease: MemoryLease?
    private let grant: UInt
    private let start: Int

    /// The number of bytes, also after the memory is revoked.
    public let count: Int

    /// A buffer without bytes.
    public init() { self.init(nil, grant: 0, count: 0) }

    init(_ lease: MemoryLease?, grant: UInt, start: Int = 0, count: Int) {
        self.lease = lease
        self.grant = grant
        self.start = start
        self.count = count
    }

    /// Whether the memory is revoked.
    ///
    /// A device need not check it before an access.
    public var isRevoked: Bool { lease?.hasEnded(grant: grant) ?? false }

    /// Whether the bytes are in memory of this process that stands in for the guest's.
    package var isStaged: Bool { lease?.isStaged ?? false }

    /// Ends the lease of the buffer, unless it has ended.
    ///
    /// - Returns: the lease, for another transfer.
    package func endLease() -> MemoryLease? {
        if !isRevoked { lease?.end() }
        return lease
    }

    /// The number of segments, each of which is contiguous in this process.
    public var segmentCount: Int {
        var result = 0
        unsafe forEachSegment { _ in result += 1 }
        return result
    }

    /// Calls `body` with each segment in order.
    ///
    /// The pointers are valid until `body` returns.
    public func forEachSegment<E: Error>(
        _ body: (UnsafeMutableRawBufferPointer) throws(E) -> Void
    ) throws(E) {
        guard let lease, !lease.hasEnded(grant: grant) else { return }
        unsafe try lease.forEachSegment(in: start..<start + count, body)
    }

    /// The whole buffer as one segment; `nil` if it has several or its memory is revoked.
    ///
    /// The pointer is valid until the caller returns to the event loop.
    public var contiguousBytes: UnsafeMutableRawBufferPointer? {
        var result: UnsafeMutableRawBufferPointer?
        unsafe forEachSegment { segment in
            if unsafe result == nil { unsafe result = segment }
        }
        guard let bytes = unsafe result, bytes.count == count else { return nil }
        return unsafe bytes
    }

    /// The part of the buffer from `offset` on: `count` bytes, or as many as there are.
    public func slice(from offset: Int, count wanted: Int) -> TransferBuffer {
        let skipped = min(max(offset, 0), count)
        return TransferBuffer(
            lease, grant: grant, start: start + skipped,
            count: min(max(wanted, 0), count - skipped))
    }

    /// Writes `bytes` from `offset` on.
    ///
    /// - Returns: the number of bytes written: fewer where the buffer ends, 0 if its memory is
    ///   revoked.
    @discardableResult
    public func copy(from bytes: Span<UInt8>, at offset: Int = 0) -> Int {
        var done = 0
        unsafe bytes.withUnsafeBytes { source in
            done = unsafe copy(from: source, at: offset)
        }
        return done
    }

    /// Writes bytes of this process from `offset` on; see ``copy(from:at:)-(Span<UInt8>,_)``.
    @discardableResult
    public func copy(from bytes: UnsafeRawBufferPointer, at offset: Int = 0) -> Int {
        guard let source = bytes.baseAddress else { return 0 }
        var done = 0
        unsafe slice(from: offset, count: bytes.count).forEachSegment { segment in
            guard let target = segment.baseAddress else { return }
            unsafe target.copyMemory(from: source + done, byteCount: segment.count)
            done += segment.count
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

    /// Reads the bytes from `offset` on into memory of this process.
    ///
    /// - Returns: the number of bytes read: fewer where the buffer ends, 0 if its memory is
    ///   revoked.
    @discardableResult
    public func copy(into bytes: UnsafeMutableRawBufferPointer, at offset: Int = 0) -> Int {
        guard let target = bytes.baseAddress else { return 0 }
        var done = 0
        unsafe slice(from: offset, count: bytes.count).forEachSegment { segment in
            guard let source = segment.baseAddress else { return }
            unsafe (target + done).copyMemory(from: source, byteCount: segment.count)
            done += segment.count
        }
        return done
    }

    /// A copy of `count` bytes from `offset` on, or as many as there are.
    public func bytes(from offset: Int = 0, count wanted: Int = .max) -> [UInt8] {
        let part = slice(from: offset, count: wanted)
        guard part.count > 0 else { return [] }
        return unsafe [UInt8](unsafeUninitializedCapacity: part.count) { target, initialized in
            initialized = unsafe part.copy(into: UnsafeMutableRawBufferPointer(target))
        }
    }
}
