// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// An eventfd that another process waits on; see eventfd(2).
public final class EventDescriptor {
    private let descriptor: OwnedDescriptor

    /// Takes over an eventfd and makes it non-blocking, so that a peer that fills its counter
    /// cannot block this process.
    ///
    /// - Throws: the errno of fcntl(2).
    public init(_ descriptor: consuming OwnedDescriptor) throws(Errno) {
        try descriptor.setNonblocking()
        self.descriptor = descriptor
    }

    /// Adds 1 to the counter, which wakes the waiting process.
    ///
    /// Any thread may call it.
    ///
    /// Errors are ignored: `EAGAIN` means that the counter is full, so the process is awake
    /// already.
    public func signal() {
        var one: UInt64 = 1
        _ = try? systemCall { unsafe write(descriptor.rawValue, &one, MemoryLayout<UInt64>.size) }
    }
}
