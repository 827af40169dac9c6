// SPDX-License-Identifier: Apache-2.0

/// A lease on the memory of one transfer: the bytes that its ``TransferBuffer`` refers to, and whether
/// the buffer may still access them.
///
/// The controller grants a lease with each transfer and ends it when the transfer completes. It may
/// revoke a lease earlier, for example when the guest stops an endpoint or the device is detached:
/// the guest uses the memory for something else from then on. A revoked lease refers to no bytes, so
/// every later access through a buffer copies nothing.
///
/// Devices use ``TransferBuffer`` and never see its lease. Leases are used on the event loop only.
@safe
public final class MemoryLease {
    @safe
    fileprivate struct Segment {
        var bytes: UnsafeMutableRawBufferPointer
        let owner: AnyObject
    }

    /// Most leases have one segment, because neighbours are merged; an empty `rest` costs no
    /// allocation.
    fileprivate private(set) var first: Segment?
    fileprivate private(set) var rest: [Segment] = []

    /// The bytes in all segments; 0 once the lease is revoked.
    public private(set) var count = 0

    /// Whether the lease was revoked.
    public private(set) var isRevoked = false

    /// Whether the transfer uses memory of this process instead of the guest's (``stage(in:keeping:)``).
    public private(set) var isStaged = false

    /// The position of the lease in the list of whoever granted it.
    package var index = 0

    /// A lease on no bytes.
    public init() {}

    /// A buffer of all bytes of the lease.
    public var buffer: TransferBuffer { TransferBuffer(self) }

    /// Adds bytes at the end.
    ///
    /// - Parameters:
    ///   - bytes: memory of this process.
    ///   - owner: keeps the bytes mapped or allocated while the lease refers to them.
    public func append(_ bytes: UnsafeMutableRawBufferPointer, keeping owner: AnyObject) {
        guard let start = bytes.baseAddress, bytes.count > 0 else { return }
        count += bytes.count
        guard let last = rest.last ?? first else {
            unsafe first = Segment(bytes: bytes, owner: owner)
            return
        }
        guard last.owner === owner, let lastStart = unsafe last.bytes.baseAddress,
            unsafe lastStart + last.bytes.count == start
        else {
            unsafe rest.append(Segment(bytes: bytes, owner: owner))
            return
        }
        let merged = unsafe UnsafeMutableRawBufferPointer(
            start: lastStart, count: last.bytes.count + bytes.count)
        if rest.isEmpty {
            unsafe first = Segment(bytes: merged, owner: owner)
        } else {
            unsafe rest[rest.count - 1].bytes = merged
        }
    }

    /// Ends all access to the bytes.
    public func revoke() {
        clear()
        isRevoked = true
    }

    /// Makes the lease one on no bytes again, for the next transfer.
    package func reuse() {
        clear()
        isRevoked = false
        isStaged = false
    }

    private func clear() {
        first = nil
        if !rest.isEmpty { rest.removeAll(keepingCapacity: true) }
        count = 0
    }

    // MARK: - Staging

    /// Whether a segment belongs to `owner`.
    public func refers(to owner: AnyObject) -> Bool {
        first?.owner === owner || rest.contains { $0.owner === owner }
    }

    /// Adds memory of this process that stands in for guest memory.
    public func appendStaged(_ bytes: UnsafeMutableRawBufferPointer, keeping owner: AnyObject) {
        unsafe append(bytes, keeping: owner)
        isStaged = true
    }

    /// Moves the transfer to memory of this process: copies the bytes there and refers to the copy.
    ///
    /// The transfer does not notice. What its device writes from now on reaches the guest only if
    /// the controller copies it there.
    ///
    /// - Parameters:
    ///   - bytes: memory for ``count`` bytes.
    ///   - owner: keeps `bytes` allocated.
    public func stage(in bytes: UnsafeMutableRawBufferPointer, keeping owner: AnyObject) {
        precondition(bytes.count == count, "\(bytes.count) bytes stand in for \(count)")
        var offset = 0
        unsafe forEachSegment(in: 0..<count) { segment in
            unsafe UnsafeMutableRawBufferPointer(
                rebasing: bytes[offset..<offset + segment.count]
            ).copyMemory(from: UnsafeRawBufferPointer(segment))
            offset += segment.count
        }
        clear()
        unsafe appendStaged(bytes, keeping: owner)
    }

    // MARK: - Access

    /// Calls `body` with the parts of the segments that lie in a range of the lease's bytes, in order.
    func forEachSegment<E: Error>(
        in range: Range<Int>, _ body: (UnsafeMutableRawBufferPointer) throws(E) -> Void
    ) throws(E) {
        guard let first else { return }
        // `body` may wait for the client, and the lease be revoked meanwhile.
        defer { withExtendedLifetime(first.owner) {} }
        let size = unsafe first.bytes.count
        if range.lowerBound < size {
            let part = unsafe UnsafeMutableRawBufferPointer(
                rebasing: first.bytes[range.lowerBound..<min(range.upperBound, size)])
            if part.count > 0 { unsafe try body(part) }
        }
        guard range.upperBound > size else { return }
        var start = size
        for segment in rest {
            let end = unsafe start + segment.bytes.count
            let lower = max(range.lowerBound, start)
            let upper = min(range.upperBound, end)
            if lower < upper {
                unsafe try body(
                    UnsafeMutableRawBufferPointer(
                        rebasing: segment.bytes[lower - start..<upper - start]))
            }
            start = end
            if start >= range.upperBound { return }
        }
    }
}
