// SPDX-License-Identifier: Apache-2.0

internal import Glibc
public import SystemPackage

/// A file descriptor with one owner, closed when the owner is destroyed; see close(2).
///
/// The type is noncopyable, so a descriptor cannot be closed twice, nor leak through a branch that
/// forgets it.
public struct OwnedDescriptor: ~Copyable, Sendable {
    /// The kernel's number, for system calls that do not close it.
    public let rawValue: CInt

    /// Takes over an open descriptor, which no other code may close.
    ///
    /// - Parameter rawValue: not negative.
    public init(owning rawValue: CInt) {
        precondition(rawValue >= 0, "a descriptor is not negative: \(rawValue)")
        self.rawValue = rawValue
    }

    deinit {
        // An error of close(2) concerns earlier writes, which are checked with fdatasync(2).
        _ = close(rawValue)
    }

    /// Ends the ownership and returns the number, which the caller must close.
    public consuming func release() -> CInt {
        let number = rawValue
        discard self
        return number
    }

    /// A second descriptor of the same open file (`F_DUPFD_CLOEXEC`, fcntl(2)).
    ///
    /// - Throws: `EMFILE` if the process has too many descriptors.
    public func duplicate() throws(Errno) -> OwnedDescriptor {
        OwnedDescriptor(owning: try systemCall { fcntl(rawValue, F_DUPFD_CLOEXEC, 0) })
    }

    /// Makes reads and writes fail with `EAGAIN` instead of blocking (`O_NONBLOCK`, fcntl(2)).
    ///
    /// The setting belongs to the open file, so it also affects its duplicates.
    ///
    /// - Throws: the errno of fcntl(2).
    public func setNonblocking() throws(Errno) {
        let flags = try systemCall { fcntl(rawValue, F_GETFL) }
        _ = try systemCall { fcntl(rawValue, F_SETFL, flags | O_NONBLOCK) }
    }
}

/// Calls a function that returns a negative number and sets errno on failure.
///
/// The call is repeated while it fails with `EINTR`.
///
/// - Returns: the function's result, which is not negative.
/// - Throws: the errno.
public func systemCall<Number: SignedInteger>(_ body: () -> Number) throws(Errno) -> Number {
    while true {
        let result = body()
        if result >= 0 { return result }
        let error = Errno.current
        if error != .interrupted { throw error }
    }
}

extension Errno {
    /// The errno of the calling thread; see errno(3).
    public static var current: Errno { Errno(rawValue: errno) }
}
