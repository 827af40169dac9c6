// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// A clock that never goes backwards.
///
/// Times are `Duration`s since the clock started, so a layer that only handles times imports
/// nothing.
public protocol MonotonicClock: AnyObject {
    /// The time since the clock started.
    var now: Duration { get }
}

/// The conditions that a descriptor is watched for, or that hold for it.
public struct Readiness: OptionSet, Sendable {
    /// The conditions as bits.
    public let rawValue: UInt8

    /// Creates a set of conditions from bits.
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Data, a connection or the end of the stream can be read without blocking (`EPOLLIN`).
    public static let readable = Readiness(rawValue: 1)
    /// Data can be written without blocking (`EPOLLOUT`).
    public static let writable = Readiness(rawValue: 2)
    /// The peer hung up or the descriptor failed (`EPOLLHUP`, `EPOLLERR`).
    ///
    /// It is always reported, even if the descriptor is not watched for it.
    public static let closed = Readiness(rawValue: 4)
}

/// A registration with an event loop: of a descriptor, or of a timer.
///
/// It must be stored: the registration ends when the watch is dropped. It is used on the loop's
/// thread only.
public final class Watch {
    private var cancellation: (() -> Void)?

    /// Creates a watch that calls `cancellation` once, when it is cancelled or dropped.
    ///
    /// For implementations of ``EventLoop``.
    public init(_ cancellation: @escaping () -> Void) { self.cancellation = cancellation }

    /// Ends the registration.
    ///
    /// After the return its body is not called again. A second call has no effect.
    public func cancel() {
        guard let cancellation else { return }
        self.cancellation = nil
        cancellation()
    }

    deinit { cancel() }
}

/// The event loop: its thread runs all code of the server except blocking calls, which run on a
/// ``Worker``.
///
/// Bodies run one after the other, never nested. All functions are called on the loop's thread. The
/// program uses ``EpollLoop``; tests have a loop with a simulated clock.
public protocol EventLoop: MonotonicClock {
    /// Calls `body` in each turn in which the descriptor is ready (level-triggered), until the
    /// watch is dropped.
    ///
    /// - Parameters:
    ///   - descriptor: must stay open while the watch exists. It can have one watch at a time.
    ///   - events: the conditions to watch for; ``Readiness/closed`` is reported in any case.
    ///   - body: called with the conditions that hold.
    /// - Returns: the registration.
    /// - Throws: `EEXIST` if the descriptor is watched already, `EPERM` if it cannot be watched (a
    ///   regular file), otherwise the errno of epoll_ctl(2).
    func watch(
        _ descriptor: borrowing OwnedDescriptor, for events: Readiness,
        _ body: @escaping (Readiness) -> Void
    ) throws(Errno) -> Watch

    /// Calls `body` once, at `deadline` or soon after, unless the watch is dropped before.
    ///
    /// - Parameters:
    ///   - deadline: a time of ``MonotonicClock/now``. A deadline in the past is reached in the
    ///     loop's current or next turn.
    ///   - body: called from the loop, never from within this function.
    /// - Returns: the registration.
    func schedule(at deadline: Duration, _ body: @escaping () -> Void) -> Watch
}
