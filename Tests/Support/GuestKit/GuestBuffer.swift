// SPDX-License-Identifier: Apache-2.0

public import USB

/// Guest memory for one transfer, in segments that are not adjacent.
public final class GuestBuffer {
    private let allocation: UnsafeMutableRawBufferPointer
    /// The lease of the transfer on the memory. A test may revoke it.
    public let lease: MemoryLease
    public let buffer: TransferBuffer

    /// `count` bytes of 0xa5 in up to `segments` segments with gaps between them.
    public init(_ count: Int, segments: Int = 1) {
        let gap = 64
        allocation = .allocate(byteCount: count + gap * segments + 4096, alignment: 4096)
        allocation.initializeMemory(as: UInt8.self, repeating: 0xa5)
        lease = MemoryLease()
        let owner = Owner()
        var start = 0
        var left = count
        for index in 0..<max(segments, 1) {
            let length = index == segments - 1 ? left : min(left, max(count / segments, 1))
            lease.append(
                UnsafeMutableRawBufferPointer(rebasing: allocation[start..<start + length]),
                keeping: owner)
            start += length + gap
            left -= length
        }
        buffer = lease.buffer
    }

    private final class Owner {}

    deinit { allocation.deallocate() }
}
