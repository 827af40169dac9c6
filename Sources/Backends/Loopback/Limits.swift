// SPDX-License-Identifier: Apache-2.0

/// What the test device bounds, whatever is asked of it.
enum LoopbackLimits {
    /// Bytes that have come OUT and wait to go back IN; further OUT transfers wait.
    static let loopedBytes = 256 << 10
    /// Short packets among them; an OUT transfer that would end with one more waits.
    static let loopedShortPackets = 1024
    /// A block of a data pattern is at least as long, so that a transfer is few copies. It stays in
    /// the processor's nearest cache.
    static let patternBlock = 16 << 10
    /// Wrong bytes that are told of in the log; later ones only with `-v`.
    static let wrongBytesLogged = 16
    /// Bytes of a fault script.
    static let faultScript = 64 << 10
    /// Rules in it.
    static let faultRules = 256
    /// How long a fault may last, in milliseconds: an hour.
    static let faultMilliseconds = 3_600_000
    /// Transfers that a held one can wait for. The controller gives an endpoint no more at a time.
    static let faultQueue = 31
    /// Effects of one rule that are told of in the log; later ones only with `-v`.
    static let faultsLogged = 100
}
