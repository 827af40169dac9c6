// SPDX-License-Identifier: Apache-2.0

/// Bounds of the mass storage device, independent of what a host requests.
enum MassStorageLimits {
    /// The largest transfer that the event loop moves itself, between its buffer and a file in the
    /// page cache (about 200 µs), and the size of a ``StagingBuffer``. The worker moves larger
    /// transfers in chunks: many UAS commands may arrive at once, and moving all their data on the
    /// event loop would delay other accesses of the guest.
    static let chunkBytes = 1 << 20
    /// Queued UAS commands. A further command gets TASK SET FULL status.
    static let uasCommands = 64
    /// UAS replies that the host has not fetched. Further requests wait in the command pipe.
    static let uasReplies = 128
    /// MaxStreams of the UAS pipes, as a power of two. A host has one command in progress per
    /// stream.
    static let uasStreamsLog2: UInt8 = 5
    /// MAXIMUM UNMAP LBA COUNT of the block limits page: 4 GiB.
    static let unmapBlocks: UInt64 = 0x80_0000
    /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT of the block limits page.
    static let unmapDescriptors = 256
    /// MAXIMUM WRITE SAME LENGTH of the block limits page: 32 MiB. The worker writes the pattern
    /// out, and a reset must not wait long for it.
    static let writeSameBlocks: UInt64 = 0x1_0000
}
