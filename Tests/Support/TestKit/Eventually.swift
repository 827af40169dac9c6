// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// Calls `body` until it succeeds, at least once and for at most `limit`.
///
/// For conditions that another test in the same process can delay: a process that it has forked
/// holds a copy of every descriptor, and with it locks, connections and listening sockets, until it
/// executes its program.
///
/// - Throws: the error of the last call.
public func eventually<Value>(
    within limit: Duration = .seconds(30), _ body: () throws -> Value
) throws -> Value {
    let deadline = ContinuousClock.now + limit
    while true {
        do {
            return try body()
        } catch {
            guard ContinuousClock.now < deadline else { throw error }
            _ = poll(nil, 0, 1)
        }
    }
}

/// Whether a condition holds now or within `limit`.
public func holdsEventually(
    within limit: Duration = .seconds(30), _ condition: () throws -> Bool
) rethrows -> Bool {
    let deadline = ContinuousClock.now + limit
    while true {
        if try condition() { return true }
        guard ContinuousClock.now < deadline else { return false }
        _ = poll(nil, 0, 1)
    }
}
