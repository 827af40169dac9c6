// SPDX-License-Identifier: Apache-2.0

/// Limits of the test device.
enum LoopbackLimits {
    /// Bytes in the loopback queue. An OUT transfer waits until there is room.
    static let loopedBytes = 256 << 10
    /// Short packets in the loopback queue. An OUT transfer that ends with one more waits.
    static let loopedShortPackets = 1024
    /// The least bytes of a pattern block, so that filling a transfer takes few copies. It fits into the
    /// first-level cache.
    static let patternBlock = 16 << 10
    /// Wrong bytes that are logged as notices; later ones are logged at debug level.
    static let wrongBytesLogged = 16
    /// Bytes of a fault script.
    static let faultScript = 64 << 10
    /// Rules of a fault script.
    static let faultRules = 256
    /// The longest time in a fault rule, in milliseconds: an hour.
    static let faultMilliseconds = 3_600_000
    /// Transfers that a NAK fault can wait for. The controller submits at most 32 of an endpoint.
    static let faultQueue = 31
    /// Faults of one rule that are logged as notices; later ones are logged at debug level.
    static let faultsLogged = 100
}
