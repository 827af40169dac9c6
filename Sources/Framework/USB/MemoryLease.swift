// SPDX-License-Identifier: Apache-2.0

/// A lease on the memory of one transfer at a time: the bytes that the transfer's
/// ``TransferBuffer`` refers to, for as long as the buffer may access them.
///
/// The controller grants a lease with the submission of a transfer and ends it when the TD is
/// retired. It revokes the lease earlier when the guest takes the memory back, for example with
/// Stop Endpoint, or when the device is detached. A buffer whose lease has ended refers to no
/// bytes: accesses through it copy nothing. When the client unmaps the memory, the lease moves to
/// staging memory instead (`LeaseTable` of the controller). The lease can be granted to the next
/// transfer at once, because a buffer knows for which grant it was made.
///
/// Devices use ``TransferBuffer`` and never see its lease. Leases are used on the event loop only.
@safe
public final class MemoryLease {
    @safe
    fileprivate struct Segment {
        var bytes: UnsafeMutableRawBufferPointer
        let owner: AnyObject
    }

    fileprivate struct State {
        /// The number of grants that have ended.
        var endedGrants: UInt = 0
        /// Most leases have one segment, because adjacent segments are merged; an empty `rest`
        /// costs no allocation.
        var first: Segment?
        var rest: [Segment] = []
        var count = 0
        var isStaged = false
    }

    // Run-time checks for exclusive access are off, because they would cost more than all else that
    // is done to a lease. No function calls anything outside this file while it accesses the state.
    @exclusivity(unchecked) private var state = State()

    /// A lease on no bytes.
    public init() {}

    /// A buffer of all bytes of the current grant.
    public var buffer: TransferBuffer {
        unsafe TransferBuffer(self, grant: state.endedGrants, count: state.count)
    }

    /// Ends the grant: buffers made so far no longer access the bytes.
    ///
    /// The lease then refers to no bytes.
    public func end() {
        unsafe state.endedGrants &+= 1
        unsafe state.clear()
    }

    /// Whether the grant for which a buffer was made has ended.
    func hasEnded(grant: UInt) -> Bool { unsafe grant != state.endedGrants }

    /// Adds bytes at the end.
    ///
    /// - Parameters:
    ///   - bytes: memory of this process.
    ///   - owner: keeps the bytes mapped or allocated while the lease refers to them.
    public func append(_ bytes: UnsafeMutableRawBufferPointer, keeping owner: AnyObject) {
        unsafe state.append(bytes, keeping: owner)
    }

    // MARK: - Staging

    /// Whether the transfer uses memory of this process instead of the guest's.
    var isStaged: Bool { unsafe state.isStaged }

    /// Whether a segment belongs to an owner.
    ///
    /// - Parameter owner: as given to ``append(_:keeping:)``.
    /// - Returns: whether it does.
    public func refers(to owner: AnyObject) -> Bool {
        unsafe state.first?.owner === owner || state.rest.contains { $0.owner === owner }
    }

    /// Replaces all bytes by memory of this process that stands in for guest memory.
    ///
    /// - Parameters:
    ///   - bytes: the memory.
    ///   - owner: keeps `bytes` allocated.
    public func replace(
        withStaged bytes: UnsafeMutableRawBufferPointer, keeping owner: AnyObject
    ) {
        unsafe state.clear()
        unsafe state.append(bytes, keeping: owner)
        unsafe state.isStaged = true
    }

    /// Moves the transfer to memory of this process: copies the bytes there and refers to the copy.
    ///
    /// The device does not notice. Its later writes reach the guest only if the controller copies
    /// them there.
    ///
    /// - Parameters:
    ///   - bytes: memory for all bytes of the lease.
    ///   - owner: keeps `bytes` allocated.
    public func stage(in bytes: UnsafeMutableRawBufferPointer, keeping owner: AnyObject) {
        _ = unsafe buffer.copy(into: bytes)
        unsafe replace(withStaged: bytes, keeping: owner)
    }

    // MARK: - Access

    /// Calls `body` with the parts of the segments that lie in a range of the lease's bytes, in
    /// order.
    func forEachSegment<E: Error>(
        in range: Range<Int>, _ body: (UnsafeMutableRawBufferPointer) throws(E) -> Void
    ) throws(E) {
        guard let first = unsafe state.first else { return }
        let rest = unsafe state.rest
        // `body` may wait for the client; the lease may end meanwhile.
        defer { withExtendedLifetime((first.owner, rest)) {} }
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

extension MemoryLease.State {
    fileprivate mutating func clear() {
        first = nil
        if !rest.isEmpty { rest = [] }
        count = 0
        isStaged = false
    }

    /// Adds bytes at the end; bytes adjacent to the last segment are merged with it.
    fileprivate mutating func append(
        _ bytes: UnsafeMutableRawBufferPointer, keeping owner: AnyObject
    ) {
        guard let start = bytes.baseAddress, bytes.count > 0 else { return }
        count += bytes.count
        guard let last = rest.last ?? first else {
            unsafe first = MemoryLease.Segment(bytes: bytes, owner: owner)
            return
        }
        guard last.owner === owner, let lastStart = unsafe last.bytes.baseAddress,
            unsafe lastStart + last.bytes.count == start
        else {
            unsafe rest.append(MemoryLease.Segment(bytes: bytes, owner: owner))
            return
        }
        let merged = unsafe UnsafeMutableRawBufferPointer(
            start: lastStart, count: last.bytes.count + bytes.count)
        if rest.isEmpty {
            unsafe first = MemoryLease.Segment(bytes: merged, owner: owner)
        } else {
            unsafe rest[rest.count - 1].bytes = merged
        }
    }
}
