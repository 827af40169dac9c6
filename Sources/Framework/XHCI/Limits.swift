// SPDX-License-Identifier: Apache-2.0

/// The bounds that keep one guest from costing unbounded work or memory.
public enum Limits {
    /// Link TRBs in a row before a ring counts as a loop. Real rings have one between two data TRBs.
    public static let consecutiveLinks = 256
    /// TRBs of one transfer descriptor. Linux cuts at 64 KiB, so this is far above any request.
    public static let trbsPerTransfer = 4096
    /// Bytes of one transfer descriptor.
    public static let bytesPerTransfer = 64 << 20
    /// Transfers of one endpoint that a device has at a time: enough to hide its latency.
    public static let transfersInFlight = 32
    /// Bytes of one endpoint that a device has at a time; one transfer may always start.
    public static let bytesInFlight = 16 << 20
    /// Commands and transfers that one `service` begins before it lets the loop turn.
    public static let workPerService = 1024
    /// How long a command waits for a device to give back cancelled transfers. FreeBSD gives up a
    /// command after 100 ms.
    public static let drainTime: Duration = .milliseconds(80)
}
