// SPDX-License-Identifier: Apache-2.0

import Foundation
import GuestKit

/// A benchmark of a driver that uses several interrupters, as drivers with one per processor do.
///
/// The transfers of one endpoint target the interrupters in turn.
struct InterrupterBenchmark {
    static let title = "Number of interrupters"
    private static let counts = [1, 2, 4, 8]
    private static let size = 512
    /// Transfers on the ring at a time, spread evenly over the interrupters.
    private static let depth = 32

    let folder: URL

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "IN transfers of \(Self.size) bytes of the test device, which target the "
                    + "interrupters in turn. memory: MB of RssAnon at the end. p50, p99: µs from the "
                    + "doorbell write to the interrupt, CPU: µs of the program, one transfer at a "
                    + "time. 'full': \(Self.depth) transfers on the ring."
            ],
            columns: ["memory", "p50", "p99", "CPU", "transfers/s, full", "CPU, full"])
        progress("process: interrupters")
        var loads: [InterrupterLoad] = []
        for count in Self.counts {
            loads.append(
                try InterrupterLoad(
                    interrupters: count, size: Self.size, depth: Self.depth, folder: folder))
        }
        var single = loads.map { _ in [Sample]() }
        var full = loads.map { _ in [Sample]() }
        for load in loads { _ = try load.runMany(.time(Settings.time / 4)) }
        for _ in 0..<Settings.rounds {
            for (index, load) in loads.enumerated() {
                single[index].append(try load.runOne(.time(Settings.time)))
                full[index].append(try load.runMany(.time(Settings.time)))
            }
        }
        for (index, load) in loads.enumerated() {
            let latencies = single[index].flatMap(\.latencies)
            section.rows.append(
                Report.Row(
                    name: Self.counts[index] == 1 ? "1 used" : "\(Self.counts[index]) used",
                    values: [
                        "memory": load.program.memory("RssAnon") / 1024,
                        "p50": percentile(latencies, 0.5), "p99": percentile(latencies, 0.99),
                        "CPU": median(single[index].map(\.microsecondsOfProcessor)),
                        "transfers/s, full": median(full[index].map(\.commandsPerSecond)),
                        "CPU, full": median(full[index].map(\.microsecondsOfProcessor)),
                    ]))
            try load.program.terminate()
        }
        return section
    }
}

/// A load of bulk transfers that target several interrupters in turn.
private struct InterrupterLoad {
    let program: RunningProgram
    private let loop: InterruptLoop
    private let endpoint: GuestEndpoint
    private let count: Int
    private let size: Int
    private let trbs: [[GuestTRB]]

    init(interrupters: Int, size: Int, depth: Int, folder: URL) throws {
        program = try RunningProgram(devices: ["loopback:speed=super,pattern=none"], folder: folder)
        let driver = try program.boot(interrupters: interrupters)
        guard driver.registers.interrupters >= interrupters else {
            throw BenchmarkError("the controller has \(driver.registers.interrupters) interrupters")
        }
        let endpoint = try GuestPipes(driver, configuration: 0).input
        self.endpoint = endpoint
        loop = try InterruptLoop(driver)
        count = interrupters
        self.size = size
        trbs = (0..<depth).map { number in
            let buffer = driver.memory.allocate(size, alignment: 4096)
            return endpoint.trbs(buffer, size).map { $0.interrupter(number % interrupters) }
        }
    }

    /// Runs one transfer at a time.
    func runOne(_ amount: Amount) throws -> Sample {
        try measure { sample, start in
            while !amount.isReached(sample.commands, since: start) {
                let index = sample.commands % trbs.count
                endpoint.ring.push(trbs[index])
                try loop.finish(
                    endpoint, interrupter: index % count, latencies: &sample.latencies)
                sample.commands += 1
            }
        }
    }

    /// Runs transfers with a full ring, and reads each event ring after its interrupt.
    func runMany(_ amount: Amount) throws -> Sample {
        try measure { sample, start in
            var enqueued = 0
            var inFlight = [Int](repeating: 0, count: count)
            func enqueue() {
                endpoint.ring.push(trbs[enqueued % trbs.count])
                inFlight[enqueued % count] += 1
                enqueued += 1
            }
            while enqueued < trbs.count { enqueue() }
            try loop.ring(endpoint)
            var interrupter = 0
            while sample.commands < enqueued {
                if inFlight[interrupter] > 0 {
                    try loop.events(of: interrupter) { _ in
                        inFlight[interrupter] -= 1
                        sample.commands += 1
                    }
                    let before = enqueued
                    while enqueued - sample.commands < trbs.count,
                        !amount.isReached(enqueued, since: start)
                    { enqueue() }
                    if enqueued > before { try loop.ring(endpoint) }
                }
                interrupter = (interrupter + 1) % count
            }
        }
    }

    private func measure(
        _ body: (inout Sample, ContinuousClock.Instant) throws -> Void
    ) throws -> Sample {
        try Sample.measure(size: size, processorTime: { program.processorTime }, body)
    }
}
