// SPDX-License-Identifier: Apache-2.0

public import USB

/// Memory of a guest: pieces that are not neighbours, so that a buffer has several segments.
public final class GuestPieces {
    private let allocation: UnsafeMutableRawBufferPointer
    /// The memory as a transfer has it; a test may revoke it.
    public let lease: MemoryLease
    public let buffer: TransferBuffer

    /// `count` bytes of 0xa5 in up to `pieces` segments with gaps between them.
    public init(_ count: Int, pieces: Int = 1) {
        let gap = 64
        allocation = .allocate(byteCount: count + gap * pieces + 4096, alignment: 4096)
        allocation.initializeMemory(as: UInt8.self, repeating: 0xa5)
        lease = MemoryLease()
        let owner = Owner()
        var start = 0
        var left = count
        for index in 0..<max(pieces, 1) {
            let length = index == pieces - 1 ? left : min(left, max(count / pieces, 1))
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
