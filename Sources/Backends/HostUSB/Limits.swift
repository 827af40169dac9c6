// SPDX-License-Identifier: Apache-2.0

/// Limits on a passed-through device, besides those of the host's kernel.
enum HostUSBLimits {
    /// Maximum bytes of a control transfer, as in libusb. A longer read is cut to this length; a
    /// longer write is stalled.
    static let controlBytes = 4096
    /// Maximum packets of an isochronous request to the kernel: 4 ms with one packet a microframe.
    static let packetsPerRequest = 32
    /// Maximum different warnings that are logged for a device. A guest can cause one for each
    /// alternate setting.
    static let warningsLogged = 32
    /// Maximum bytes of a transfer that uses a block of ``TransferMemory``.
    static let transferBytes = 64 << 20
    /// Maximum bytes of a block that is kept for further transfers.
    static let keptTransferBytes = 1 << 20
    /// Maximum bytes of all blocks that a device keeps for further transfers.
    static let keptBytesPerDevice = 16 << 20
    /// Threads for calls that may block, shared by all devices.
    static let threads = 4
    /// Maximum threads while system calls hang.
    static let threadsWhenStalled = 32
    /// The time after which the pool starts a further thread, if jobs wait and none starts.
    static let stallTime = Duration.seconds(1)
}
