// SPDX-License-Identifier: Apache-2.0

/// The size of a logical block in bytes. Every guest and firmware supports 512.
let blockSize = 512

/// A range of logical blocks that lies on the medium.
struct Extent: Equatable, Sendable {
    /// The first logical block address (LBA).
    var block: UInt64
    var count: UInt64

    var byteOffset: UInt64 { block * UInt64(blockSize) }
    var byteCount: Int { Int(count) * blockSize }
}
