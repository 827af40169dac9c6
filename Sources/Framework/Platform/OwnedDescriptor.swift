// SPDX-License-Identifier: Apache-2.0

internal import Glibc
public import SystemPackage

/// A file descriptor that is closed exactly once: when its owner goes away.
///
/// The type is noncopyable, so a descriptor that arrives from a client has one owner at every
/// moment and cannot leak through a forgotten branch.
public struct OwnedDescriptor: ~Copyable, Sendable {
    /// The kernel's number, for calls that borrow the descriptor.
    public let rawValue: CInt

    /// Takes over a descriptor that nobody else closes.
    public init(owning rawValue: CInt) {
        precondition(rawValue >= 0, "a descriptor is not negative: \(rawValue)")
        self.rawValue = rawValue
    }

    deinit {
        // Errors of close(2) tell of earlier writes, which the writers check with fsync(2).
        _ = close(rawValue)
    }

    /// Gives up ownership; the caller closes the returned number.
    public consuming func release() -> CInt {
        let number = rawValue
        discard self
        return number
    }

    /// A second descriptor of the same open file. Corresponds to `fcntl(F_DUPFD_CLOEXEC)`.
    public func duplicate() throws(Errno) -> OwnedDescriptor {
        OwnedDescriptor(owning: try systemCall { fcntl(rawValue, F_DUPFD_CLOEXEC, 0) })
    }

    /// Makes reads and writes return `EAGAIN` instead of waiting.
    public func setNonblocking() throws(Errno) {
        let flags = try systemCall { fcntl(rawValue, F_GETFL) }
        _ = try systemCall { fcntl(rawValue, F_SETFL, flags | O_NONBLOCK) }
    }
}

/// Runs a system call, repeats it while a signal interrupts it, and throws its errno when it fails.
public func systemCall<Number: SignedInteger>(_ body: () -> Number) throws(Errno) -> Number {
    while true {
        let result = body()
        if result >= 0 { return result }
        let error = Errno.current
        if error != .interrupted { throw error }
    }
}

extension Errno {
    /// The calling thread's errno.
    public static var current: Errno { Errno(rawValue: errno) }
}
