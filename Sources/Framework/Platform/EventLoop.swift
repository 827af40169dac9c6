// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// A clock that only moves forward.
///
/// Time is a `Duration` since the clock began: a standard-library type, so that a layer which is
/// handed times needs to import nothing.
public protocol MonotonicClock: AnyObject {
    /// The time since the clock began.
    var now: Duration { get }
}

/// What a descriptor is ready for, or is watched for.
public struct Readiness: OptionSet, Sendable {
    public let rawValue: UInt8

    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Data, a connection or an end of file can be read.
    public static let readable = Readiness(rawValue: 1)
    /// A write would not wait.
    public static let writable = Readiness(rawValue: 2)
    /// The peer hung up or the descriptor failed; reported without being asked for.
    public static let closed = Readiness(rawValue: 4)
}

/// A registration with an event loop. Dropping it ends the registration.
public final class Watch {
    private var cancellation: (() -> Void)?

    /// A watch whose end runs `cancellation` once.
    public init(_ cancellation: @escaping () -> Void) { self.cancellation = cancellation }

    /// Ends the registration now. The body is not called after this returns.
    public func cancel() {
        guard let cancellation else { return }
        self.cancellation = nil
        cancellation()
    }

    deinit { cancel() }
}

/// The one thread on which everything but blocking calls happens.
///
/// There are two conformers: ``EpollLoop`` and the simulator of the tests, whose clock is a number.
/// Bodies run one after the other, never inside one another.
public protocol EventLoop: MonotonicClock {
    /// Calls `body` whenever the descriptor is ready (level-triggered) until the watch is dropped.
    ///
    /// The descriptor must stay open for as long as the watch lives.
    func watch(
        _ descriptor: borrowing OwnedDescriptor, for events: Readiness,
        _ body: @escaping (Readiness) -> Void
    ) throws(Errno) -> Watch

    /// Calls `body` once at or after `deadline`, unless the watch is dropped before.
    func schedule(at deadline: Duration, _ body: @escaping () -> Void) -> Watch
}
