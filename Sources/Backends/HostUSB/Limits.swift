// SPDX-License-Identifier: Apache-2.0

/// Bounds on a passed-through device, in addition to those of the host's kernel.
enum HostUSBLimits {
    /// Bytes of one control transfer, which is libusb's own bound. A longer read is cut to this
    /// length; a longer write is stalled.
    static let controlBytes = 4096
    /// Packets of one isochronous request to the kernel: 4 ms at eight microframes a millisecond.
    static let packetsPerRequest = 32
    /// Different warnings about one device in the log; a guest can cause as many as there are
    /// alternate settings.
    static let warningsLogged = 32
    /// Bytes of one transfer that goes through the backend's own memory (``TransferMemory``).
    static let transferBytes = 64 << 20
    /// Bytes of a transfer whose memory is kept for the next one.
    static let keptTransferBytes = 1 << 20
    /// Bytes that a device keeps for further transfers in all.
    static let keptBytesPerDevice = 16 << 20
    /// Threads for calls that may block, shared by all devices.
    static let threads = 4
    /// Threads while system calls hang: the pool starts a further one whenever no job has started for
    /// ``stallTime`` although jobs wait.
    static let threadsWhenStalled = 32
    static let stallTime = Duration.seconds(1)
}
