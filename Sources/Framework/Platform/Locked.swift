// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// A value that several threads share, protected by a POSIX mutex; see pthread_mutex_lock(3).
///
/// The standard library's `Mutex` is not used because the thread sanitizer does not know it and
/// reports every access to its value as a race.
@safe
public final class Locked<Value>: @unchecked Sendable {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private var value: Value

    /// Creates a lock that protects `value`.
    public init(_ value: Value) {
        unsafe mutex = .allocate(capacity: 1)
        unsafe pthread_mutex_init(mutex, nil)
        self.value = value
    }

    deinit {
        unsafe pthread_mutex_destroy(mutex)
        unsafe mutex.deallocate()
    }

    /// Calls `body` with exclusive access to the value.
    ///
    /// Any thread may call it.
    ///
    /// The lock is not recursive: `body` must not lock it again.
    ///
    /// - Returns: the result of `body`.
    /// - Throws: the error that `body` throws.
    public func withLock<Result, E: Error>(
        _ body: (inout Value) throws(E) -> Result
    ) throws(E) -> Result {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        return try body(&value)
    }
}
