// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// A contiguous range of guest memory that the client has mapped.
///
/// The region retains its mapping: the memory is unmapped from this process when the last reference
/// to the region ends.
@safe
public final class MemoryRegion {
    /// The guest address of the first byte.
    package let start: UInt64
    /// The length in bytes, at least 1.
    package let count: UInt64
    package let isWritable: Bool
    /// `nil` for a region without a descriptor, which is accessed through ``RemoteMemory``.
    let mapping: Mapping?
    /// `false` once the client has unmapped the region. An access checks it before each region.
    private(set) var isMapped = true

    init(start: UInt64, count: UInt64, isWritable: Bool, mapping: Mapping?) {
        self.start = start
        self.count = count
        self.isWritable = isWritable
        self.mapping = mapping
    }

    /// Records that the client has unmapped the region.
    func markUnmapped() { isMapped = false }

    /// Whether the region has no descriptor.
    package var isRemote: Bool { mapping == nil }

    /// Whether the file still has all pages of the region.
    package var isIntact: Bool { mapping?.isIntact ?? true }

    /// The guest address of the last byte. A region is never empty and never wraps around.
    package var last: UInt64 { start + (count - 1) }

    func contains(_ address: UInt64) -> Bool { address >= start && address - start < count }

    /// The memory from `address`, which must lie in the region, to its end; `nil` without a
    /// mapping.
    func bytes(from address: UInt64) -> UnsafeMutableRawBufferPointer? {
        guard let mapping else { return nil }
        return unsafe UnsafeMutableRawBufferPointer(
            rebasing: mapping.bytes[Int(address - start)...])
    }
}
