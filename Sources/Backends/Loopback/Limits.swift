// SPDX-License-Identifier: Apache-2.0

/// What the test device bounds, whatever is asked of it.
enum Limits {
    /// Bytes that have come OUT and wait to go back IN; further OUT transfers wait.
    static let loopedBytes = 256 << 10
    /// Short packets among them; an OUT transfer that would end with one more waits.
    static let loopedShortPackets = 1024
    /// A block of a data pattern is at least as long, so that a transfer is few copies. It stays in
    /// the processor's nearest cache.
    static let patternBlock = 16 << 10
    /// Wrong bytes that are told of in the log; later ones only with `-v`.
    static let wrongBytesLogged = 16
}
