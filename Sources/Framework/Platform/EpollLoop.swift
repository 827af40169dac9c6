// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// The event loop of the program, based on epoll(7).
///
/// The user data of each epoll registration holds a slot number and that slot's generation. An
/// event that was fetched before its watch was cancelled has an old generation and is dropped.
@safe
public final class EpollLoop: EventLoop {
    private struct Registration {
        var generation: UInt32
        var descriptor: CInt
        var body: ((Readiness) -> Void)?
    }

    private struct Timer {
        let id: UInt64
        let deadline: Duration
        let body: () -> Void
    }

    /// Events fetched by one `epoll_wait`; further ones are fetched in the next turn.
    private static let eventsPerTurn = 64

    private let epoll: OwnedDescriptor
    private let events: UnsafeMutableBufferPointer<epoll_event>
    private var registrations: [Registration] = []
    private var freeSlots: [Int] = []
    /// Sorted by deadline, and timers of equal deadline by the order in which they were scheduled.
    ///
    /// There are a few dozen at most, so an array is enough.
    private var timers: [Timer] = []
    private var nextTimer: UInt64 = 0
    /// The `CLOCK_MONOTONIC` time at which the loop's clock started.
    private let origin: Duration

    /// Creates a loop whose clock starts at zero.
    ///
    /// - Throws: the errno of epoll_create1(2).
    public init() throws(Errno) {
        epoll = OwnedDescriptor(owning: try systemCall { epoll_create1(CInt(EPOLL_CLOEXEC)) })
        unsafe events = .allocate(capacity: Self.eventsPerTurn)
        unsafe events.initialize(repeating: epoll_event())
        origin = Self.monotonicTime()
    }

    deinit { unsafe events.deallocate() }

    /// The time since the loop was created (`CLOCK_MONOTONIC`).
    public var now: Duration { Self.monotonicTime() - origin }

    /// Calls `body` in each turn in which the descriptor is ready; see
    /// ``EventLoop/watch(_:for:_:)``.
    public func watch(
        _ descriptor: borrowing OwnedDescriptor, for events: Readiness,
        _ body: @escaping (Readiness) -> Void
    ) throws(Errno) -> Watch {
        let slot = freeSlots.popLast() ?? registrations.count
        let generation: UInt32
        if slot == registrations.count {
            generation = 0
            registrations.append(Registration(generation: 0, descriptor: -1, body: nil))
        } else {
            generation = registrations[slot].generation
        }
        let number = descriptor.rawValue
        var event = unsafe epoll_event()
        unsafe event.events = events.epollEvents
        unsafe event.data.u64 = UInt64(generation) << 32 | UInt64(slot)
        do throws(Errno) {
            _ = try systemCall { unsafe epoll_ctl(epoll.rawValue, EPOLL_CTL_ADD, number, &event) }
        } catch {
            freeSlots.append(slot)
            throw error
        }
        registrations[slot].descriptor = number
        registrations[slot].body = body
        return Watch { [weak self] in self?.unregister(slot, generation: generation) }
    }

    /// Calls `body` once at a deadline; see ``EventLoop/schedule(at:_:)``.
    public func schedule(at deadline: Duration, _ body: @escaping () -> Void) -> Watch {
        let id = nextTimer
        nextTimer += 1
        let index = timers.firstIndex { $0.deadline > deadline } ?? timers.count
        timers.insert(Timer(id: id, deadline: deadline, body: body), at: index)
        return Watch { [weak self] in self?.timers.removeAll { $0.id == id } }
    }

    /// Runs one turn of the loop: waits until a descriptor is ready or a timer is due, runs their
    /// bodies, and returns.
    ///
    /// - Parameter limit: the time, on the loop's clock, at which to return even if nothing is
    ///   ready; with a time in the past the turn does not wait, with `nil` it waits without limit.
    /// - Throws: the errno of epoll_pwait2(2).
    public func turn(until limit: Duration? = nil) throws(Errno) {
        var wakeUp = limit
        if let first = timers.first?.deadline { wakeUp = wakeUp.map { min($0, first) } ?? first }
        let wait = wakeUp.map { max(($0 - now).nanoseconds, 0) } ?? -1

        let count = try systemCall {
            unsafe clinux_epoll_wait(
                epoll.rawValue, events.baseAddress, CInt(Self.eventsPerTurn), wait)
        }
        for index in 0..<Int(count) {
            let event = unsafe events[index]
            let word = unsafe event.data.u64
            let slot = Int(word & 0xffff_ffff)
            guard registrations.indices.contains(slot),
                registrations[slot].generation == UInt32(word >> 32),
                let body = registrations[slot].body
            else { continue }
            body(Readiness(epollEvents: unsafe event.events))
        }
        guard let first = timers.first, first.deadline <= now else { return }
        // The timers due now, without those that their bodies schedule: a body that reschedules
        // itself for now must not keep the loop in this turn.
        let time = now
        let due = timers.prefix { $0.deadline <= time }.map(\.id)
        for id in due {
            guard let index = timers.firstIndex(where: { $0.id == id }) else { continue }
            timers.remove(at: index).body()
        }
    }

    private func unregister(_ slot: Int, generation: UInt32) {
        guard registrations[slot].generation == generation, registrations[slot].body != nil else {
            return
        }
        _ = epoll_ctl(epoll.rawValue, EPOLL_CTL_DEL, registrations[slot].descriptor, nil)
        registrations[slot].generation &+= 1
        registrations[slot].descriptor = -1
        registrations[slot].body = nil
        freeSlots.append(slot)
    }

    private static func monotonicTime() -> Duration {
        var time = timespec()
        unsafe clock_gettime(CLOCK_MONOTONIC, &time)
        return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
    }
}

extension Duration {
    /// The duration in whole nanoseconds, rounded towards zero; the nearest `Int64` if it exceeds
    /// the range of about 292 years.
    public var nanoseconds: Int64 {
        let (seconds, attoseconds) = components
        let (scaled, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        if overflow { return seconds < 0 ? .min : .max }
        let (sum, carry) = scaled.addingReportingOverflow(attoseconds / 1_000_000_000)
        if carry { return seconds < 0 ? .min : .max }
        return sum
    }
}

extension Readiness {
    fileprivate var epollEvents: UInt32 {
        var events: UInt32 = 0
        if contains(.readable) { events |= EPOLLIN.rawValue }
        if contains(.writable) { events |= EPOLLOUT.rawValue }
        return events
    }

    fileprivate init(epollEvents: UInt32) {
        self = []
        if epollEvents & EPOLLIN.rawValue != 0 { insert(.readable) }
        if epollEvents & EPOLLOUT.rawValue != 0 { insert(.writable) }
        if epollEvents & (EPOLLHUP.rawValue | EPOLLERR.rawValue) != 0 { insert(.closed) }
    }
}
