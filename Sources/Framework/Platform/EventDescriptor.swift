// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// The end of an eventfd that somebody else waits at.
public final class EventDescriptor {
    private let descriptor: OwnedDescriptor

    /// Takes over an eventfd. It is made nonblocking: a peer that filled its counter must not be able
    /// to hold up this program.
    public init(_ descriptor: consuming OwnedDescriptor) throws(Errno) {
        try descriptor.setNonblocking()
        self.descriptor = descriptor
    }

    /// Wakes whoever waits. A counter that is full has woken them already.
    public func signal() {
        var one: UInt64 = 1
        _ = try? systemCall { unsafe write(descriptor.rawValue, &one, MemoryLayout<UInt64>.size) }
    }
}
