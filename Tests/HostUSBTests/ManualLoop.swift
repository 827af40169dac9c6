// SPDX-License-Identifier: Apache-2.0

import Platform
import SystemPackage

/// An event loop on a simulated clock. Advancing the clock runs the due timers.
final class ManualLoop: EventLoop {
    /// The number of watched descriptors, and its limit.
    private(set) var watched = 0
    var limit = Int.max

    /// The time that passes whenever the clock is read.
    var tick = Duration.zero
    private var time = Duration.zero
    var now: Duration {
        time += tick
        return time
    }
    private var timers: [(id: Int, deadline: Duration, body: () -> Void)] = []
    private var nextTimer = 0

    func watch(
        _ descriptor: borrowing OwnedDescriptor, for events: Readiness,
        _ body: @escaping (Readiness) -> Void
    ) throws(Errno) -> Watch {
        guard watched < limit else { throw .noSpace }
        watched += 1
        return Watch {}
    }

    func schedule(at deadline: Duration, _ body: @escaping () -> Void) -> Watch {
        nextTimer += 1
        let id = nextTimer
        timers.append((id, deadline, body))
        return Watch { [weak self] in self?.timers.removeAll { $0.id == id } }
    }

    /// Advances the clock without running timers, as time passes while the loop is blocked.
    func advanceClock(by step: Duration) { time += step }

    func advance(by step: Duration) {
        let end = time + step
        while let next = timers.filter({ $0.deadline <= end }).min(by: { $0.deadline < $1.deadline }
        ) {
            timers.removeAll { $0.id == next.id }
            time = max(time, next.deadline)
            next.body()
        }
        time = end
    }
}
