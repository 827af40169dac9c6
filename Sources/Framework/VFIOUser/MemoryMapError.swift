// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// The reason why a device cannot map guest memory.
public struct MemoryMapError: Error, Equatable {
    /// The error of the reply to DMA_MAP.
    public let errno: Errno
    /// The reason in words, for the log. It follows the range and a colon.
    public let reason: String

    public init(_ errno: Errno, _ reason: String) {
        self.errno = errno
        self.reason = reason
    }
}
