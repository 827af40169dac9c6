// SPDX-License-Identifier: Apache-2.0

/// The bounds on the memory and time that one client can take.
public enum VFIOUserLimits {
    /// Bytes of data in one message: the protocol's default for `max_data_xfer_size`, and the value
    /// that both known clients offer.
    public static let dataTransfer = 1 << 20

    /// Descriptors with one message: the most that QEMU accepts as `max_msg_fds`, and the size of
    /// Cloud Hypervisor's batches.
    public static let descriptors = 16

    /// Bytes of a message: header, the fields of REGION_WRITE, and its data. The reply to the
    /// server's own longest DMA_READ has the same size.
    public static let messageSize = MessageHeader.size + 16 + dataTransfer

    /// Bytes of the receive buffer: the longest message, and 64 KiB so that one system call
    /// receives many short messages.
    static let receiveBuffer = messageSize + 65536

    /// System calls that receive from one client in one turn of the event loop.
    static let receivesPerTurn = 16

    /// Bytes of version data; QEMU sends 194, Cloud Hypervisor 93.
    public static let versionData = 4096

    /// Nested objects and arrays in version data; known clients nest 3.
    public static let versionDataDepth = 8

    /// Bytes that wait until the client reads them: two of the longest replies. A client that lets
    /// more accumulate is disconnected.
    public static let outputQueue = 2 * messageSize

    /// The time for which the device waits for replies to DMA_READ and DMA_WRITE, in all accesses
    /// of one turn of the event loop. It is shorter than QEMU's timeout of 5 s, so that a client
    /// that is blocked meanwhile sees a failed access, not an unresponsive device.
    public static let memoryAccessTimeout: Duration = .seconds(4)
}
