// SPDX-License-Identifier: Apache-2.0

import Foundation
import GuestKit
import USB

/// A benchmark of the latency of interrupt transfers, one at a time as with keyboards and hubs.
struct InterruptBenchmark {
    static let title = "Interrupt transfers"
    private static let sizes = [8, 64, 1024]
    /// Transfers in a round.
    private static let transfers = 2000

    let folder: URL

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "One transfer at a time, which the device completes at once. p50, p99, most: µs from "
                    + "the doorbell write to the interrupt; register: the p50 of a register read, "
                    + "which is one request and its reply; CPU: µs of the program per transfer."
            ],
            columns: ["p50", "p99", "most", "register", "transfers/s", "CPU"])
        for direction in [Direction.in, .out] {
            for size in Self.sizes {
                let name = "\(direction == .in ? "IN" : "OUT") \(sizeName(size))"
                progress("loopback: interrupt \(name)")
                section.rows.append(
                    Report.Row(name: name, values: try measure(direction, size: size)))
            }
        }
        return section
    }

    private func measure(_ direction: Direction, size: Int) throws -> [String: Double] {
        let program = try RunningProgram(
            devices: ["loopback:speed=super,interrupt-interval=1,interrupt-packet=1024"],
            folder: folder)
        let driver = try program.boot()
        var wanted = GuestEndpointConfiguration(
            EndpointAddress(2, direction), direction == .in ? .interruptIn : .interruptOut)
        wanted.maxPacketSize = 1024
        let endpoint = try driver.configureLoopback(wanted)
        let load = try PipeLoad([endpoint], size: size, depth: 1)
        _ = try load.run(.commands(Self.transfers / 10)) { program.processorTime }
        var samples: [Sample] = []
        var registers: [Double] = []
        for _ in 0..<Settings.rounds {
            samples.append(
                try load.run(.commands(Self.transfers)) { program.processorTime })
            for _ in 0..<Self.transfers / 4 {
                let start = ContinuousClock.now
                _ = driver.machine.read32(driver.registers.status)
                registers.append((ContinuousClock.now - start).inMicroseconds)
            }
        }
        try program.terminate()
        let latencies = samples.flatMap(\.latencies)
        return [
            "p50": percentile(latencies, 0.5), "p99": percentile(latencies, 0.99),
            "most": latencies.max() ?? 0, "register": median(registers),
            "transfers/s": median(samples.map(\.commandsPerSecond)),
            "CPU": median(samples.map(\.microsecondsOfProcessor)),
        ]
    }
}
