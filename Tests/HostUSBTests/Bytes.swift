// SPDX-License-Identifier: Apache-2.0

import USB

/// Memory that stands for guest memory.
final class Bytes {
    let raw: UnsafeMutableRawBufferPointer

    init(_ content: [UInt8]) {
        raw = .allocate(byteCount: max(content.count, 1), alignment: 16)
        raw.copyBytes(from: content)
        count = content.count
    }

    let count: Int
    deinit { raw.deallocate() }

    var content: [UInt8] { Array(raw[..<count]) }

    /// The bytes, without the minimum allocation.
    var all: UnsafeMutableRawBufferPointer { .init(rebasing: raw[..<count]) }

    /// The bytes in one segment.
    var buffer: TransferBuffer { lease.buffer }

    /// A lease on the bytes, which the test may revoke.
    var lease: MemoryLease {
        let lease = MemoryLease()
        lease.append(all, keeping: self)
        return lease
    }

    /// A buffer with each of `parts` as a segment.
    static func buffer(_ parts: [Bytes]) -> TransferBuffer {
        let lease = MemoryLease()
        for part in parts { lease.append(part.all, keeping: part) }
        return lease.buffer
    }
}
