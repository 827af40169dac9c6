// SPDX-License-Identifier: Apache-2.0

/// What a stick bounds, whatever a host asks of it.
enum MassStorageLimits {
    /// Bytes that the event loop moves between a file in memory and a transfer at a time: some 200 µs of
    /// work. A worker moves larger ones, so that commands of UAS, which may all come at once, do not
    /// make the guest's other accesses wait for long.
    static let bytesAtOnce = 1 << 20
    /// Commands of UAS that wait for their turn; a further one is told that the task set is full.
    static let uasCommands = 64
    /// Answers of UAS that nobody takes; the host's next requests wait in their pipe.
    static let uasReplies = 128
    /// Streams of UAS, as a power of two: as many commands does a host have under way.
    static let uasStreamsLog2: UInt8 = 5
    /// Blocks in all descriptors of one UNMAP: 4 GiB. The block limits page tells of this and what follows.
    static let unmapBlocks: UInt64 = 0x80_0000
    /// Descriptors of one UNMAP.
    static let unmapDescriptors = 256
    /// Blocks of one WRITE SAME: 32 MiB, as a pattern is written out, and a reset must not wait for long.
    static let writeSameBlocks: UInt64 = 0x1_0000
}
