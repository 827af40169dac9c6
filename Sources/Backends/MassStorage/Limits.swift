// SPDX-License-Identifier: Apache-2.0

/// Bounds of the mass storage device, independent of what a host requests.
enum MassStorageLimits {
    /// Bytes moved at a time: the largest transfer that the event loop moves between its buffer and
    /// a file in the page cache (about 200 µs), and the size of a ``StagingBuffer``. The worker
    /// moves larger transfers in chunks, since the commands of UAS may arrive all at once and would
    /// keep the event loop from other accesses of the guest.
    static let chunkBytes = 1 << 20
    /// Queued commands of UAS. The status of a further one is TASK SET FULL.
    static let uasCommands = 64
    /// Replies of UAS that the host has not fetched. Further requests wait in the command pipe.
    static let uasReplies = 128
    /// Streams of UAS as a power of two, the number of commands that a host has in progress.
    static let uasStreamsLog2: UInt8 = 5
    /// MAXIMUM UNMAP LBA COUNT of the block limits page: 4 GiB.
    static let unmapBlocks: UInt64 = 0x80_0000
    /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT of the block limits page.
    static let unmapDescriptors = 256
    /// MAXIMUM WRITE SAME LENGTH of the block limits page: 32 MiB. The worker writes the pattern
    /// out, and a reset must not wait long for it.
    static let writeSameBlocks: UInt64 = 0x1_0000
}
