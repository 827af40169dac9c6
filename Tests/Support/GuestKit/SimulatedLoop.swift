// SPDX-License-Identifier: Apache-2.0

internal import Glibc
public import Platform
public import SystemPackage

/// An event loop with simulated time, which only ``advance(to:)`` changes.
///
/// Timers run in the order of their deadlines, timers with equal deadlines in the order in which
/// they were scheduled. Descriptors are real and are polled, so a device with a worker thread
/// works, too.
public final class SimulatedLoop: EventLoop {
    private struct Timer {
        let identifier: Int
        let deadline: Duration
        let body: () -> Void
    }

    private struct Watched {
        let identifier: Int
        let descriptor: CInt
        let readiness: Readiness
        let body: (Readiness) -> Void
    }

    public private(set) var now: Duration = .zero
    private var timers: [Timer] = []
    private var watched: [Watched] = []
    private var nextIdentifier = 0

    public init() {}

    /// The deadline of the earliest timer.
    public var nextDeadline: Duration? { timers.first?.deadline }

    /// Whether a descriptor is watched, so that real time matters.
    public var watchesDescriptors: Bool { !watched.isEmpty }

    public func watch(
        _ descriptor: borrowing OwnedDescriptor, for events: Readiness,
        _ body: @escaping (Readiness) -> Void
    ) throws(Errno) -> Watch {
        nextIdentifier += 1
        let identifier = nextIdentifier
        watched.append(
            Watched(
                identifier: identifier, descriptor: descriptor.rawValue, readiness: events,
                body: body))
        return Watch { [weak self] in self?.watched.removeAll { $0.identifier == identifier } }
    }

    public func schedule(at deadline: Duration, _ body: @escaping () -> Void) -> Watch {
        nextIdentifier += 1
        let identifier = nextIdentifier
        let index = timers.firstIndex { $0.deadline > deadline } ?? timers.count
        timers.insert(
            Timer(identifier: identifier, deadline: deadline, body: body), at: index)
        return Watch { [weak self] in self?.timers.removeAll { $0.identifier == identifier } }
    }

    /// Moves the clock forward. Nothing runs.
    public func advance(to time: Duration) { now = max(now, time) }

    /// Runs the timers that are due and the bodies of ready descriptors. If no timer is due, waits
    /// for descriptors for at most `wait` milliseconds of real time.
    ///
    /// - Returns: whether a body ran.
    public func turn(wait: CInt = 0) -> Bool {
        var ran = false
        while let first = timers.first, first.deadline <= now {
            timers.removeFirst()
            first.body()
            ran = true
        }
        guard !watched.isEmpty else { return ran }
        var polls = watched.map { entry in
            var events: Int32 = 0
            if entry.readiness.contains(.readable) { events |= POLLIN }
            if entry.readiness.contains(.writable) { events |= POLLOUT }
            return pollfd(fd: entry.descriptor, events: Int16(events), revents: 0)
        }
        guard poll(&polls, nfds_t(polls.count), ran ? 0 : wait) > 0 else { return ran }
        for (entry, result) in zip(watched, polls) where result.revents != 0 {
            guard watched.contains(where: { $0.identifier == entry.identifier }) else { continue }
            var readiness: Readiness = []
            if Int32(result.revents) & POLLIN != 0 { readiness.insert(.readable) }
            if Int32(result.revents) & POLLOUT != 0 { readiness.insert(.writable) }
            if Int32(result.revents) & (POLLHUP | POLLERR) != 0 { readiness.insert(.closed) }
            entry.body(readiness)
            ran = true
        }
        return ran
    }
}
