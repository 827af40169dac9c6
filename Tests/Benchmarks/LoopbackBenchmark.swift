// SPDX-License-Identifier: Apache-2.0

import DMA
import Foundation
import GuestKit
import USB

/// A test device that makes up what it sends and throws away what it gets: what the controller
/// costs without a medium.
struct LoopbackBenchmark {
    static let title = "Bulk transfers to a test device"
    private static let sizes = [512, 4096, 65536, 1 << 20]
    private static let depth = 16

    let folder: URL

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "copy MB/s: a copy of as many bytes in memory by one thread, in turns with ours; p50, "
                    + "p99: µs from before a doorbell is written to the interrupt, one transfer at "
                    + "a time; CPU: µs of the program a transfer, \(Self.depth) on the ring.",
                "loop: what goes OUT comes back IN; bytes are counted once.",
            ],
            columns: ["MB/s", "copy MB/s", "ratio", "transfers/s", "p50", "p99", "CPU"])
        section.plots = [
            Plot(file: "bulk", title: "\(Self.title): MB/s", columns: ["MB/s", "copy MB/s"])
        ]
        for size in Self.sizes {
            for (name, configuration) in [("IN source", 0), ("OUT sink", 0), ("loop", 1)] {
                progress("loopback: \(name) \(sizeName(size))")
                let program = try RunningProgram(devices: ["loopback:speed=super"], folder: folder)
                let pipe = try GuestPipes(program.boot(), configuration: UInt16(configuration))
                let used =
                    switch name {
                    case "IN source": [pipe.input]
                    case "OUT sink": [pipe.output]
                    default: [pipe.output, pipe.input]
                    }
                section.rows.append(
                    try measure("\(name) \(sizeName(size))", used, size, program))
                try program.terminate()
            }
        }
        return section
    }

    private func measure(
        _ name: String, _ endpoints: [GuestEndpoint], _ size: Int, _ program: RunningProgram
    ) throws -> Report.Row {
        let load = try PipeLoad(endpoints, size: size, depth: Self.depth)
        let copy = MemoryCopy(size: size, buffers: Self.depth)
        _ = try load.run(.time(Settings.time / 4)) { program.processorTime }
        var ours: [Sample] = []
        var copies: [Sample] = []
        for _ in 0..<Settings.rounds {
            copies.append(copy.run(.time(Settings.time / 4)))
            ours.append(try load.run(.time(Settings.time)) { program.processorTime })
        }
        var values = [
            "MB/s": median(ours.map(\.megabytesPerSecond)),
            "copy MB/s": median(copies.map(\.megabytesPerSecond)),
            "ratio": median(
                zip(ours, copies).map { $0.megabytesPerSecond / $1.megabytesPerSecond }),
            "transfers/s": median(ours.map(\.commandsPerSecond)),
            "CPU": median(ours.map(\.microsecondsOfProcessor)),
        ]
        if endpoints.count == 1 {
            let single = try PipeLoad(endpoints, size: size, depth: 1)
            var latencies: [Double] = []
            for _ in 0..<Settings.rounds {
                latencies += try single.run(.time(Settings.time / 4)) { .zero }.latencies
            }
            values["p50"] = percentile(latencies, 0.5)
            values["p99"] = percentile(latencies, 0.99)
        }
        return Report.Row(name: name, values: values)
    }
}

/// The bulk endpoints of a device, configured.
struct GuestPipes {
    let input: GuestEndpoint
    let output: GuestEndpoint

    init(_ driver: GuestDriver, configuration: UInt16) throws {
        let slot = try driver.addressNewDevice()
        let descriptor = try slot.control(
            SetupPacket(
                requestType: 0x80, request: 6, value: 0x200 | configuration, index: 0,
                length: 255))
        let wanted = try GuestStick.bulkEndpoints(descriptor, ring: [1024])
        let endpoints = try slot.configure(wanted)
        try slot.setConfiguration(UInt16(descriptor[5]))
        input = endpoints[0]
        output = endpoints[1]
    }
}

/// Keeps the rings of some endpoints filled with transfers of one size.
struct PipeLoad {
    private let loop: InterruptLoop
    private let endpoints: [GuestEndpoint]
    private let trbs: [[[GuestTRB]]]
    private let size: Int
    private let depth: Int

    init(_ endpoints: [GuestEndpoint], size: Int, depth: Int) throws {
        self.endpoints = endpoints
        self.size = size
        self.depth = depth
        loop = try InterruptLoop(endpoints[0].driver)
        let memory = endpoints[0].driver.memory
        trbs = endpoints.map { endpoint in
            (0..<depth).map { _ in
                endpoint.trbs(memory.allocate(size, alignment: 4096), size)
            }
        }
    }

    /// Runs transfers; of several endpoints, those of the last count.
    func run(_ amount: Amount, processorTime: () -> Duration) throws -> Sample {
        var sample = Sample()
        let used = processorTime()
        let start = ContinuousClock.now
        if depth == 1, endpoints.count == 1 {
            while !amount.isReached(sample.commands, since: start) {
                endpoints[0].ring.push(trbs[0][0])
                try loop.finish(endpoints[0], latencies: &sample.latencies)
                sample.commands += 1
            }
        } else {
            try runMany(amount, start, &sample)
        }
        sample.time = ContinuousClock.now - start
        sample.processorTime = processorTime() - used
        sample.bytes = sample.commands * size
        return sample
    }

    private func runMany(
        _ amount: Amount, _ start: ContinuousClock.Instant, _ sample: inout Sample
    ) throws {
        var given = 0
        var done = endpoints.map { _ in 0 }
        func give() {
            for (endpoint, trbs) in zip(endpoints, trbs) {
                endpoint.ring.push(trbs[given % depth])
            }
            given += 1
        }
        func isOver() -> Bool { amount.isReached(given, since: start) }
        while given < depth, !isOver() { give() }
        for endpoint in endpoints { try loop.ring(endpoint) }
        while done.contains(where: { $0 < given }) {
            try loop.events { event in
                if let index = endpoints.firstIndex(where: { $0.contextIndex == event.endpoint }) {
                    done[index] += 1
                }
            }
            let before = given
            while let least = done.min(), given - least < depth, !isOver() { give() }
            if given > before { for endpoint in endpoints { try loop.ring(endpoint) } }
        }
        sample.commands = given
    }
}

/// Copies memory, as fast as one thread can.
final class MemoryCopy {
    private let source: UnsafeMutableRawBufferPointer
    private let target: UnsafeMutableRawBufferPointer
    private let size: Int
    private let buffers: Int

    init(size: Int, buffers: Int) {
        self.size = size
        self.buffers = buffers
        source = .allocate(byteCount: size * buffers, alignment: 4096)
        target = .allocate(byteCount: size * buffers, alignment: 4096)
        source.initializeMemory(as: UInt8.self, repeating: 1)
        target.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit {
        source.deallocate()
        target.deallocate()
    }

    func run(_ amount: Amount) -> Sample {
        var sample = Sample()
        let start = ContinuousClock.now
        while !amount.isReached(sample.commands, since: start) {
            for _ in 0..<64 {
                let offset = sample.commands % buffers * size
                UnsafeMutableRawBufferPointer(rebasing: target[offset..<offset + size]).copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: source[offset..<offset + size]))
                sample.commands += 1
            }
        }
        sample.time = ContinuousClock.now - start
        sample.bytes = sample.commands * size
        return sample
    }
}
