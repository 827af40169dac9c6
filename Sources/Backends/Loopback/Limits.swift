// SPDX-License-Identifier: Apache-2.0

/// Limits of the test device.
enum LoopbackLimits {
    /// Capacity of the loopback queue in bytes. An OUT transfer waits while the queue is full.
    static let loopedBytes = 256 << 10
    /// Short packets in the loopback queue. An OUT transfer that would add another one waits.
    static let loopedShortPackets = 1024
    /// Minimum bytes of a pattern block: large enough to fill a transfer with few copies, small
    /// enough for the first-level cache.
    static let patternBlock = 16 << 10
    /// Transfers with wrong data that are logged as notices; later ones are logged at debug level.
    static let wrongBytesLogged = 16
    /// Maximum bytes of a fault script.
    static let faultScript = 64 << 10
    /// Maximum rules of a fault script.
    static let faultRules = 256
    /// The longest time in a fault rule, in milliseconds: an hour.
    static let faultMilliseconds = 3_600_000
    /// Further transfers that a NAK fault can wait for. The controller submits at most 32 transfers
    /// of an endpoint, one of which gets the NAK.
    static let faultQueue = 31
    /// Faults of one rule that are logged as notices; later ones are logged at debug level.
    static let faultsLogged = 100
}
