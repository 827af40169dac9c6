// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// A contiguous range of guest memory that the client has mapped.
///
/// A transfer retains the regions of its buffers, so their memory stays mapped until the last
/// transfer ends. Only then is the ``Unmapping`` finished.
@safe
package final class MemoryRegion {
    /// The guest address of the first byte.
    package let start: UInt64
    /// The length in bytes, at least 1.
    package let count: UInt64
    package let isWritable: Bool
    /// `nil` for a region without a descriptor, which is accessed through ``RemoteMemory``.
    let mapping: Mapping?
    /// Set when the region was removed from ``GuestMemory``; finished by `deinit`.
    private var unmapping: Unmapping?

    init(start: UInt64, count: UInt64, isWritable: Bool, mapping: Mapping?) {
        self.start = start
        self.count = count
        self.isWritable = isWritable
        self.mapping = mapping
    }

    deinit { unmapping?.finish() }

    /// The unmapping of this region, which has just been removed from ``GuestMemory``.
    ///
    /// The unmapping of a region without a descriptor is finished at once: the client refuses late
    /// accesses itself, and it may answer no access before it has the reply to DMA_UNMAP.
    func retire() -> Unmapping {
        let unmapping = Unmapping()
        if isRemote { unmapping.finish() } else { self.unmapping = unmapping }
        return unmapping
    }

    /// Whether the region has no descriptor.
    package var isRemote: Bool { mapping == nil }

    /// Whether the file still has all pages of the region.
    package var isIntact: Bool { mapping?.isIntact ?? true }

    /// The guest address of the last byte. A region is never empty and never wraps around.
    package var last: UInt64 { start + (count - 1) }

    func contains(_ address: UInt64) -> Bool { address >= start && address - start < count }

    /// The memory from `address`, which must lie in the region, to its end; `nil` without a mapping.
    func bytes(from address: UInt64) -> UnsafeMutableRawBufferPointer? {
        guard let mapping else { return nil }
        return unsafe UnsafeMutableRawBufferPointer(
            rebasing: mapping.bytes[Int(address - start)...])
    }
}

/// The unmapping of a region, finished when the last transfer has released its memory.
public final class Unmapping {
    /// Whether no transfer uses the memory any more.
    public private(set) var isFinished = false
    private var waiters: [() -> Void] = []

    init() {}

    /// Calls `body` when the unmapping is finished, at once if it is finished already.
    public func whenFinished(_ body: @escaping () -> Void) {
        if isFinished { body() } else { waiters.append(body) }
    }

    func finish() {
        isFinished = true
        let all = waiters
        waiters = []
        for waiter in all { waiter() }
    }
}
