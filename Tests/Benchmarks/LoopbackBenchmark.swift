// SPDX-License-Identifier: Apache-2.0

import DMA
import Foundation
import GuestKit
import USB

/// A benchmark of bulk transfers with the loopback device, which generates the data of IN transfers
/// and discards that of OUT transfers: the cost of the controller without a medium.
struct LoopbackBenchmark {
    static let title = "Bulk transfers to a test device"
    private static let sizes = [512, 4096, 65536, 1 << 20]
    private static let depth = 16

    let folder: URL

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "copy MB/s: copies of the same size in memory by one thread, measured alternately; "
                    + "p50, p99: µs from the doorbell write to the interrupt, one transfer at a "
                    + "time; CPU: µs of the program per transfer, \(Self.depth) on the ring.",
                "loop: data sent to the OUT endpoint is received from the IN endpoint; bytes are "
                    + "counted once.",
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
        var samples: [Sample] = []
        var copies: [Sample] = []
        for _ in 0..<Settings.rounds {
            copies.append(copy.run(.time(Settings.time / 4)))
            samples.append(try load.run(.time(Settings.time)) { program.processorTime })
        }
        var values = [
            "MB/s": median(samples.map(\.megabytesPerSecond)),
            "copy MB/s": median(copies.map(\.megabytesPerSecond)),
            "ratio": median(
                zip(samples, copies).map { $0.megabytesPerSecond / $1.megabytesPerSecond }),
            "transfers/s": median(samples.map(\.commandsPerSecond)),
            "CPU": median(samples.map(\.microsecondsOfProcessor)),
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

extension GuestDriver {
    /// Addresses the loopback device and configures one endpoint of configuration 3, alternate
    /// setting 1.
    func configureLoopback(_ endpoint: GuestEndpointConfiguration) throws -> GuestEndpoint {
        let slot = try addressNewDevice()
        try slot.setConfiguration(3)
        try slot.setAlternateSetting(1)
        return try slot.configureOne(endpoint)
    }
}

/// The configured bulk endpoints of a device.
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

/// A load of transfers of one size that keeps the rings of its endpoints filled.
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

    /// Runs transfers. With several endpoints, a transfer on each of them counts as one.
    func run(_ amount: Amount, processorTime: () -> Duration) throws -> Sample {
        try Sample.measure(size: size, processorTime: processorTime) { sample, start in
            guard depth == 1, endpoints.count == 1 else {
                return try runMany(amount, start, &sample)
            }
            while !amount.isReached(sample.commands, since: start) {
                endpoints[0].ring.push(trbs[0][0])
                try loop.finish(endpoints[0], latencies: &sample.latencies)
                sample.commands += 1
            }
        }
    }

    private func runMany(
        _ amount: Amount, _ start: ContinuousClock.Instant, _ sample: inout Sample
    ) throws {
        var enqueued = 0
        var completed = endpoints.map { _ in 0 }
        func enqueue() {
            for (endpoint, trbs) in zip(endpoints, trbs) {
                endpoint.ring.push(trbs[enqueued % depth])
            }
            enqueued += 1
        }
        func isReached() -> Bool { amount.isReached(enqueued, since: start) }
        while enqueued < depth, !isReached() { enqueue() }
        for endpoint in endpoints { try loop.ring(endpoint) }
        while completed.contains(where: { $0 < enqueued }) {
            try loop.events { event in
                if let index = endpoints.firstIndex(where: { $0.contextIndex == event.endpoint }) {
                    completed[index] += 1
                }
            }
            let before = enqueued
            while let least = completed.min(), enqueued - least < depth, !isReached() { enqueue() }
            if enqueued > before { for endpoint in endpoints { try loop.ring(endpoint) } }
        }
        sample.commands = enqueued
    }
}

/// A load of memory copies by one thread.
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
        Sample.measure(size: size, processorTime: { .zero }) { sample, start in
            while !amount.isReached(sample.commands, since: start) {
                for _ in 0..<64 {
                    let offset = sample.commands % buffers * size
                    UnsafeMutableRawBufferPointer(rebasing: target[offset..<offset + size])
                        .copyMemory(
                            from: UnsafeRawBufferPointer(rebasing: source[offset..<offset + size]))
                    sample.commands += 1
                }
            }
        }
    }
}
