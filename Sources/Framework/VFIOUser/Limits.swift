// SPDX-License-Identifier: Apache-2.0

/// The bounds of this module: what a client can make it hold or wait for.
public enum VFIOUserLimits {
    /// Bytes moved by one message: the protocol's default for `max_data_xfer_size`, and what both
    /// known clients offer.
    public static let dataTransfer = 1 << 20

    /// Descriptors with one message: the most that QEMU accepts as `max_msg_fds`, and the size of
    /// Cloud Hypervisor's batches.
    public static let descriptors = 16

    /// Bytes of a message: header and offset, region, count of the longest REGION_WRITE. The reply to
    /// our own longest DMA_READ has the same size.
    public static let messageSize = MessageHeader.size + 16 + dataTransfer

    /// Bytes kept for received messages: the longest, with room to receive many short ones behind a
    /// part of it in one call.
    static let receiveBuffer = messageSize + 65536

    /// Rounds of receiving before other work of the event loop gets its turn.
    static let receiveRounds = 16

    /// Bytes of version data that are looked at; QEMU sends 194, Cloud Hypervisor 93.
    public static let versionData = 4096

    /// Depth of objects and arrays in version data; the deepest known is 3.
    public static let versionDataDepth = 8

    /// Bytes that wait for a client which does not read: room for two of the longest replies. A
    /// client that lets more gather is gone.
    public static let outputQueue = 2 * messageSize

    /// How long the device waits for guest memory that comes by messages, in all accesses that it makes
    /// before others have their turn. Shorter than QEMU's 5 s, so that a client blocked by our silence
    /// meets a failed access and not a dead device.
    public static let memoryAccessTime: Duration = .seconds(4)
}
