// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Platform
import Testing

@testable import HostUSB

/// Jobs of several queues on the threads of a pool.
struct ThreadPoolTests {
    let loop: EpollLoop
    let pool: ThreadPool

    init() throws {
        loop = try EpollLoop()
        pool = try ThreadPool(loop: loop)
    }

    /// Runs the loop until a condition holds.
    private func turn(until isDone: () -> Bool) throws {
        let deadline = loop.now + .seconds(60)
        while !isDone() && loop.now < deadline {
            try loop.turn(until: loop.now + .milliseconds(20))
        }
        #expect(isDone())
    }

    @Test func `the jobs of a queue run one at a time, in order`() throws {
        let queue = pool.makeQueue()
        let running = Locked(0)
        var results: [Int] = []
        for number in 0..<100 {
            queue.run {
                let others = running.withLock { count in
                    count += 1
                    return count - 1
                }
                running.withLock { $0 -= 1 }
                return others == 0 ? number : -1
            } completion: {
                results.append($0)
            }
        }
        #expect(queue.pendingJobs == 100)
        try turn { results.count == 100 }
        #expect(results == Array(0..<100))
        #expect(queue.pendingJobs == 0)
    }

    @Test func `queues share a few threads, and idle ones start none`() throws {
        let queues = (0..<3 * HostUSBLimits.threads).map { _ in pool.makeQueue() }
        #expect(pool.threadCount == 1)
        let counts = Locked((running: 0, most: 0))
        var ended = 0
        for queue in queues {
            queue.run {
                counts.withLock { counts in
                    counts.running += 1
                    counts.most = max(counts.most, counts.running)
                }
                counts.withLock { $0.running -= 1 }
            } completion: {
                ended += 1
            }
        }
        try turn { ended == queues.count }
        #expect(counts.withLock { $0.most } <= HostUSBLimits.threads)
        #expect(pool.threadCount <= HostUSBLimits.threads)
    }

    @Test func `a queue whose job runs needs no second thread`() throws {
        let queue = pool.makeQueue()
        let gate = DispatchSemaphore(value: 0)
        var ended = 0
        for _ in 0..<3 {
            queue.run {
                gate.wait()
            } completion: {
                ended += 1
            }
        }
        #expect(pool.threadCount == 1)
        for _ in 0..<3 { gate.signal() }
        try turn { ended == 3 }
    }

    @Test func `calls that hang delay the other queues, but do not stop them`() throws {
        let gate = DispatchSemaphore(value: 0)
        var hanging = HostUSBLimits.threads
        for _ in 0..<HostUSBLimits.threads {
            pool.makeQueue().run {
                gate.wait()
            } completion: {
                hanging -= 1
            }
        }
        #expect(pool.threadCount == HostUSBLimits.threads)
        var isDone = false
        let start = loop.now
        pool.makeQueue().run {
        } completion: {
            isDone = true
        }
        try turn { isDone }
        #expect(loop.now - start >= HostUSBLimits.stallTime)
        #expect(pool.threadCount == HostUSBLimits.threads + 1)
        #expect(hanging == HostUSBLimits.threads)
        for _ in 0..<HostUSBLimits.threads { gate.signal() }
        try turn { hanging == 0 }
    }

    /// The loop blocks at the end of the program, so its timers do not run.
    @Test func `a stall is noticed while the loop is blocked`() throws {
        let loop = ManualLoop()
        let pool = try ThreadPool(loop: loop)
        let gate = DispatchSemaphore(value: 0)
        let hasStarted = DispatchSemaphore(value: 0)
        for _ in 0..<HostUSBLimits.threads {
            pool.makeQueue().run {
                hasStarted.signal()
                gate.wait()
            } completion: {
            }
        }
        // A job that starts later would count as progress.
        for _ in 0..<HostUSBLimits.threads {
            #expect(hasStarted.wait(timeout: .now() + 60) == .success)
        }
        let hasRun = DispatchSemaphore(value: 0)
        let queue = pool.makeQueue()
        queue.run {
            hasRun.signal()
        } completion: {
        }
        queue.checkForStall()
        #expect(pool.threadCount == HostUSBLimits.threads)
        loop.advanceClock(by: HostUSBLimits.stallTime)
        queue.checkForStall()
        #expect(pool.threadCount == HostUSBLimits.threads + 1)
        #expect(hasRun.wait(timeout: .now() + 60) == .success)
        for _ in 0..<HostUSBLimits.threads { gate.signal() }
    }

    @Test func `hanging calls get a bounded number of threads`() throws {
        let loop = ManualLoop()
        let pool = try ThreadPool(loop: loop)
        let gate = DispatchSemaphore(value: 0)
        let count = HostUSBLimits.threadsWhenStalled + 8
        for _ in 0..<count {
            pool.makeQueue().run {
                gate.wait()
            } completion: {
            }
        }
        let deadline = ContinuousClock.now + .seconds(60)
        while pool.threadCount < HostUSBLimits.threadsWhenStalled && ContinuousClock.now < deadline
        {
            loop.advance(by: HostUSBLimits.stallTime)
        }
        for _ in 0..<10 { loop.advance(by: HostUSBLimits.stallTime) }
        #expect(pool.threadCount == HostUSBLimits.threadsWhenStalled)
        for _ in 0..<count { gate.signal() }
    }

    @Test func `a job's captures are released before its completion`() throws {
        final class Resource: Sendable {}
        weak var held: Resource?
        var wasReleased: Bool?
        do {
            let resource = Resource()
            held = resource
            pool.makeQueue().run { [resource] in
                _ = resource
            } completion: {
                wasReleased = held == nil
            }
        }
        try turn { wasReleased != nil }
        #expect(wasReleased == true)
    }
}
