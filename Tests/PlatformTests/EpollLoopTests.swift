// SPDX-License-Identifier: Apache-2.0

import Platform
import SystemPackage
import TestKit
import Testing

@Suite("the event loop")
struct EpollLoopTests {
    let loop: EpollLoop

    init() throws { loop = try EpollLoop() }

    private func turn() throws { try loop.turn(until: loop.now) }

    @Test("a readable descriptor is reported in each turn until it is read")
    func levelTriggered() throws {
        let pipe = try TestPipe()
        var calls = 0
        let watch = try loop.watch(pipe.readEnd, for: .readable) { ready in
            #expect(ready == .readable)
            calls += 1
        }
        try turn()
        #expect(calls == 0)
        try pipe.write([1])
        try turn()
        try turn()
        #expect(calls == 2)
        _ = try pipe.read(1)
        try turn()
        #expect(calls == 2)
        withExtendedLifetime(watch) {}
    }

    @Test("the end of a pipe is reported without being watched for")
    func closed() throws {
        let pipe = try TestPipe()
        var seen: Readiness = []
        let watch = try loop.watch(pipe.readEnd, for: []) { seen.formUnion($0) }
        pipe.closeWriteEnd()
        let deadline = loop.now + .seconds(30)
        while seen.isEmpty, loop.now < deadline { try loop.turn(until: deadline) }
        #expect(seen == .closed)
        withExtendedLifetime(watch) {}
    }

    @Test("a dropped watch reports nothing, and its descriptor can be watched again")
    func dropped() throws {
        let pipe = try TestPipe()
        try pipe.write([1])
        var calls: [Int] = []
        var watch: Watch? = try loop.watch(pipe.readEnd, for: .readable) { _ in calls.append(1) }
        #expect(throws: Errno.fileExists) {
            _ = try loop.watch(pipe.readEnd, for: .readable) { _ in }
        }
        watch = nil
        try turn()
        #expect(calls.isEmpty && watch == nil)
        watch = try loop.watch(pipe.readEnd, for: .readable) { _ in calls.append(2) }
        try turn()
        #expect(calls == [2])
        watch?.cancel()
        watch?.cancel()
        try turn()
        #expect(calls == [2])
    }

    @Test("an event fetched for a watch that another body has cancelled is dropped")
    func staleEvent() throws {
        let pipes = [try TestPipe(), try TestPipe()]
        for pipe in pipes { try pipe.write([1]) }
        var watches: [Watch?] = [nil, nil]
        var calls = 0
        for index in 0...1 {
            watches[index] = try loop.watch(pipes[index].readEnd, for: .readable) { _ in
                calls += 1
                watches[1 - index] = nil
            }
        }
        try turn()
        #expect(calls == 1)
    }

    @Test("an event fetched for a cancelled watch is not reported to the next watch in its slot")
    func staleEventReused() throws {
        let pipes = [try TestPipe(), try TestPipe()]
        let silent = try TestPipe()
        for pipe in pipes { try pipe.write([1]) }
        var watches: [Watch?] = [nil, nil]
        var replacement: Watch?
        var wrongCalls = 0
        for index in 0...1 {
            watches[index] = try loop.watch(pipes[index].readEnd, for: .readable) { [loop] _ in
                watches[1 - index] = nil
                replacement = try? loop.watch(silent.readEnd, for: .readable) { _ in
                    wrongCalls += 1
                }
                watches[index] = nil
            }
        }
        try turn()
        #expect(replacement != nil && wrongCalls == 0)
        try silent.write([1])
        try turn()
        #expect(wrongCalls == 1)
    }

    @Test("more descriptors than one turn fetches are all reported within a few turns")
    func many() throws {
        let pipes = try (0..<150).map { _ in try TestPipe() }
        var reported = Set<Int>()
        var watches: [Watch] = []
        for (index, pipe) in pipes.enumerated() {
            try pipe.write([1])
            watches.append(
                try loop.watch(pipe.readEnd, for: .readable) { _ in
                    reported.insert(index)
                    _ = try? pipe.read(1)
                })
        }
        for _ in 0..<3 { try turn() }
        #expect(reported.count == 150)
    }

    @Test("timers run when they are due, in the order of their deadlines")
    func timers() throws {
        var order: [Int] = []
        let start = loop.now
        let watches = [
            loop.schedule(at: start + .milliseconds(3)) { order.append(3) },
            loop.schedule(at: start - .seconds(1)) { order.append(1) },
            loop.schedule(at: start + .milliseconds(1)) { order.append(2) },
            loop.schedule(at: start + .seconds(1000)) { order.append(4) },
        ]
        while order.count < 3 { try loop.turn() }
        #expect(order == [1, 2, 3])
        #expect(loop.now - start >= .milliseconds(3))
        withExtendedLifetime(watches) {}
    }

    @Test("timers of the same deadline run in the order they were scheduled")
    func sameDeadline() throws {
        var order: [Int] = []
        let time = loop.now
        let watches = (0..<5).map { index in
            loop.schedule(at: time) { order.append(index) }
        }
        try turn()
        #expect(order == [0, 1, 2, 3, 4])
        withExtendedLifetime(watches) {}
    }

    @Test("a dropped timer does not run, even if another body of the same turn drops it")
    func droppedTimer() throws {
        var ran: [Int] = []
        let time = loop.now
        var second: Watch?
        let first = loop.schedule(at: time) {
            ran.append(1)
            second = nil
        }
        second = loop.schedule(at: time) { ran.append(2) }
        loop.schedule(at: time) { ran.append(3) }.cancel()
        try turn()
        #expect(ran == [1] && second == nil)
        withExtendedLifetime(first) {}
    }

    @Test("a timer that reschedules itself for now runs in the next turn")
    func selfRepeating() throws {
        var count = 0
        var watch: Watch?
        func again() {
            count += 1
            watch = loop.schedule(at: loop.now - .seconds(1)) { again() }
        }
        again()
        try turn()
        #expect(count == 2)
        try turn()
        #expect(count == 3)
        withExtendedLifetime(watch) {}
    }

    @Test("a turn ends at its limit")
    func limit() throws {
        let start = loop.now
        try loop.turn(until: start + .milliseconds(2))
        #expect(loop.now - start >= .milliseconds(2))
        // A limit in the past does not wait.
        try loop.turn(until: start - .seconds(5))
    }

    @Test("durations are whole nanoseconds and saturate")
    func nanoseconds() {
        #expect(Duration.milliseconds(1500).nanoseconds == 1_500_000_000)
        #expect((Duration.zero - .nanoseconds(7)).nanoseconds == -7)
        #expect(Duration.seconds(Int64.max).nanoseconds == .max)
        #expect(Duration.seconds(Int64.min).nanoseconds == .min)
        let longest = Duration.seconds(9_223_372_036) + .nanoseconds(854_775_807)
        #expect(longest.nanoseconds == .max)
        #expect((longest + .nanoseconds(1)).nanoseconds == .max)
        #expect((Duration.zero - longest - .nanoseconds(1)).nanoseconds == .min)
        #expect((Duration.zero - longest - .nanoseconds(2)).nanoseconds == .min)
    }
}
