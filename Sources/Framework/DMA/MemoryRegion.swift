// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// A part of the guest's address space that the client has given us.
///
/// A transfer that moves data holds its region, so the memory stays mapped until the last of them
/// is gone; only then is an unmapping finished.
@safe
package final class MemoryRegion {
    package let start: UInt64
    package let count: UInt64
    package let isWritable: Bool
    /// `nil` for a region without a descriptor, which is reached by messages.
    let mapping: Mapping?
    /// Set when the region has left the table; finished by `deinit`.
    private var unmapping: Unmapping?

    init(start: UInt64, count: UInt64, isWritable: Bool, mapping: Mapping?) {
        self.start = start
        self.count = count
        self.isWritable = isWritable
        self.mapping = mapping
    }

    deinit { unmapping?.finish() }

    /// Tells when the region, which has left the table, is no longer used.
    ///
    /// A region without a mapping has nothing to wait for: an access that is late is refused by the
    /// client. To wait would even do harm, since the client may answer no access before the
    /// unmapping is over.
    func retire() -> Unmapping {
        let unmapping = Unmapping()
        if isRemote { unmapping.finish() } else { self.unmapping = unmapping }
        return unmapping
    }

    package var isRemote: Bool { mapping == nil }

    package var isIntact: Bool { mapping?.isIntact ?? true }

    /// The last address; regions are never empty and never wrap.
    package var last: UInt64 { start + (count - 1) }

    func contains(_ address: UInt64) -> Bool { address >= start && address - start < count }

    /// The bytes from `address` to the end of the region; `address` must lie in it.
    func bytes(from address: UInt64) -> UnsafeMutableRawBufferPointer? {
        guard let mapping else { return nil }
        return unsafe UnsafeMutableRawBufferPointer(
            rebasing: mapping.bytes[Int(address - start)...])
    }
}

/// The end of a region's use: told once no transfer holds its memory any more.
public final class Unmapping {
    /// Whether the memory is unmapped.
    public private(set) var isFinished = false
    private var waiters: [() -> Void] = []

    init() {}

    /// Calls `body` when the memory is no longer used, at once if that is so already.
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
