// SPDX-License-Identifier: Apache-2.0

import DMA
import Foundation
import GuestKit
import USB

/// A benchmark of isochronous transfers: whether each one is executed in its service interval, and
/// the delay of its event.
struct IsochronousBenchmark {
    static let title = "Isochronous transfers"
    /// Transfers on the ring at a time.
    private static let depth = 32
    private static let packet = 1024

    /// Completion codes besides Success: Missed Service Error, Ring Underrun, Ring Overrun.
    private static let codes: Set<GuestEvent.Code> = [
        .missedService, GuestEvent.Code(rawValue: 14), GuestEvent.Code(rawValue: 15),
    ]

    let folder: URL

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "One packet of \(Self.packet) bytes per interval at high speed, \(Self.depth) on the "
                    + "ring. on time: the fraction without a Missed Service Error; gaps: the number "
                    + "of ring underruns and overruns; p50, p99, most: the delay of events in µs, "
                    + "relative to the earliest event of the run; CPU: µs per packet."
            ],
            columns: ["packets", "on time", "gaps", "p50", "p99", "most", "CPU"])
        for (name, interval) in [("125 µs", 1), ("1 ms", 4)] {
            for direction in [Direction.in, .out] {
                let row = "\(direction == .in ? "IN" : "OUT"), each \(name)"
                progress("loopback: isochronous \(row)")
                section.rows.append(
                    Report.Row(name: row, values: try measure(direction, interval: interval)))
            }
        }
        return section
    }

    private func measure(_ direction: Direction, interval: Int) throws -> [String: Double] {
        let program = try RunningProgram(
            devices: ["loopback:speed=high,iso-interval=\(interval)"], folder: folder)
        let driver = try program.boot()
        let endpoint = try driver.configureLoopback(
            .isochronous(3, direction, interval: interval - 1, maxPacketSize: Self.packet))
        let buffer = driver.memory.allocate(Self.packet, alignment: 4096)
        let trb = GuestTRB.isochronous(buffer, Self.packet, .interruptOnCompletion)
        let loop = try InterruptLoop(driver)
        let step = 125.0 * Double(1 << (interval - 1))
        let wanted = Int(Double(Settings.rounds) * 200_000 / step)

        var enqueued = 0
        var offsets: [Double] = []
        var missed = 0
        var gaps = 0
        endpoint.ring.push(Array(repeating: trb, count: Self.depth))
        enqueued = Self.depth
        let used = program.processorTime
        let start = ContinuousClock.now
        try loop.ring(endpoint)
        while offsets.count < wanted {
            let before = enqueued
            try loop.events(accepting: Self.codes) { event in
                // Ring Underrun and Ring Overrun are events of the ring, not of a transfer.
                guard event.code == .success || event.code == .missedService else {
                    gaps += 1
                    return
                }
                if event.code == .missedService { missed += 1 }
                let now = (ContinuousClock.now - start).inMicroseconds
                offsets.append(now - Double(offsets.count) * step)
                endpoint.ring.push(trb)
                enqueued += 1
            }
            if enqueued > before { try loop.ring(endpoint) }
        }
        let processor = (program.processorTime - used).inMicroseconds
        try program.terminate()
        let earliest = offsets.min() ?? 0
        let late = offsets.map { $0 - earliest }
        return [
            "packets": Double(offsets.count),
            "on time": Double(offsets.count - missed) / Double(offsets.count),
            "gaps": Double(gaps), "p50": percentile(late, 0.5), "p99": percentile(late, 0.99),
            "most": late.max() ?? 0,
            "CPU": processor / Double(offsets.count),
        ]
    }
}
