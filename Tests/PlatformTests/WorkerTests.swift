// SPDX-License-Identifier: Apache-2.0

import Foundation
import Platform
import SystemPackage
import Testing

@Suite("mailbox and worker")
struct WorkerTests {
    let loop: EpollLoop

    init() throws { loop = try EpollLoop() }

    /// Runs the loop until the condition holds; fails after ten seconds.
    private func turn(until isDone: () -> Bool) throws {
        let deadline = loop.now + .seconds(10)
        while !isDone() {
            try #require(loop.now < deadline)
            try loop.turn(until: loop.now + .milliseconds(20))
        }
    }

    @Test("messages are delivered on the loop, each once, in order")
    func mailbox() throws {
        let mailbox = try Mailbox<Int>()
        var received: [Int] = []
        let delivery = try mailbox.deliver(on: loop) { received.append($0) }
        mailbox.post(-1)
        #expect(received.isEmpty)
        let thread = Thread { for number in 0..<1000 { mailbox.post(number) } }
        thread.start()
        try turn { received.count == 1001 }
        #expect(received == Array(-1..<1000))
        withExtendedLifetime(delivery) {}
    }

    @Test("a message that is posted during delivery is delivered later")
    func mailboxReentry() throws {
        let mailbox = try Mailbox<Int>()
        var received: [Int] = []
        let delivery = try mailbox.deliver(on: loop) { number in
            received.append(number)
            if number < 3 { mailbox.post(number + 1) }
        }
        mailbox.post(0)
        try turn { received.count == 4 }
        #expect(received == [0, 1, 2, 3])
        withExtendedLifetime(delivery) {}
    }

    @Test("jobs run in order on a thread of their own, completions on the loop")
    func worker() throws {
        let worker = try Worker(name: "a name that is longer than fifteen", loop: loop)
        let main = ThreadIdentity.current
        let ran = Record()
        var completed: [Int] = []
        for number in 0..<100 {
            worker.run {
                ran.append(number)
                return ThreadIdentity.current
            } completion: { identity in
                #expect(identity != main)
                #expect(ThreadIdentity.current == main)
                completed.append(number)
            }
        }
        #expect(worker.pendingJobs == 100)
        try turn { worker.pendingJobs == 0 }
        #expect(ran.numbers == Array(0..<100) && completed == ran.numbers)
    }

    @Test("a completion may submit the next job")
    func workerChain() throws {
        let worker = try Worker(name: "chain", loop: loop)
        var count = 0
        func next() {
            count += 1
            if count < 10 {
                worker.run {
                    true
                } completion: { _ in
                    next()
                }
            }
        }
        next()
        try turn { worker.pendingJobs == 0 }
        #expect(count == 10)
    }

    @Test("a dropped worker finishes its jobs and calls no completion")
    func workerDropped() throws {
        let ran = Record()
        var completed = 0
        var worker: Worker? = try Worker(name: "dropped", loop: loop)
        for number in 0..<10 {
            worker?.run {
                ran.append(number)
            } completion: {
                completed += 1
            }
        }
        worker = nil
        try turn { ran.numbers.count == 10 }
        try loop.turn(until: loop.now)
        #expect(completed == 0 && worker == nil)
    }

    /// Numbers that a thread appends and the test reads.
    final class Record: Sendable {
        private let list = Locked<[Int]>([])

        var numbers: [Int] { list.withLock { $0 } }

        func append(_ number: Int) { list.withLock { $0.append(number) } }
    }

    struct ThreadIdentity: Equatable, Sendable {
        private let number: UInt

        static var current: ThreadIdentity { ThreadIdentity(number: UInt(pthread_self())) }
    }
}
