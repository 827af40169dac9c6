// SPDX-License-Identifier: Apache-2.0

import Foundation
import VMKit

/// A host's stick, used by the host itself and then through usbvfiod by a guest: the host is the outer
/// of two guests of the test bed, and its stick is on a bus that QEMU emulates.
struct PassthroughBenchmark {
    static let title = "A host's stick, passed through"
    private static let rounds = 3
    private static let seconds = 2

    private static let patterns: [(name: String, arguments: String)] = [
        ("read 4 KiB, random", "--rw=randread --bs=4k --iodepth=1"),
        ("write 4 KiB, random", "--rw=randwrite --bs=4k --iodepth=1"),
        ("read 64 KiB", "--rw=read --bs=64k --iodepth=1"),
        ("write 64 KiB", "--rw=write --bs=64k --iodepth=1"),
        ("read 1 MiB", "--rw=read --bs=1M --iodepth=1"),
    ]

    /// Why there is no such host here, if so.
    static func absence() -> String? {
        if case .failure(let error) = Bed.current { return "\(title): \(error)" }
        return Bed.nestingProblem.map { "\(title): \($0)" }
    }

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "fio with direct access, one request at a time, medians of \(Self.rounds) rounds. "
                    + "host: the kernel's own driver; guest: a guest of that host, through usbvfiod. "
                    + "ratio: the guest's MB/s by the host's; p50, p99: µs a request.",
                "The host is itself a guest, its stick QEMU's, its bus qemu-xhci. "
                    + (Bed.hasKVM
                        ? "Both are under KVM."
                        : "Its processor is software (TCG), and so are the changes between it and its "
                            + "guest, which is what limits the guest."),
            ],
            columns: [
                "host MB/s", "guest MB/s", "ratio", "host p50", "guest p50", "host p99",
                "guest p99",
            ])
        section.plots = [
            Plot(
                file: "passthrough", title: "\(Self.title): MB/s",
                columns: ["host MB/s", "guest MB/s"])
        ]
        progress("passthrough: booting a host")
        let lab = try Lab()
        let image = try lab.image(mebibytes: 64)
        let host = try lab.bootHost(.stable, devices: [.controller, .stick(image)])
        let port = try host.port(vendor: "46f4", product: "0001")
        progress("passthrough: the host uses its stick")
        let direct = try Self.measure(host)
        try host.serve("host:port=\(port)")
        progress("passthrough: booting its guest")
        let guest = try host.bootInner(.stable)
        progress("passthrough: the guest uses the stick")
        let passed = try Self.measure(guest)
        let complaints = try guest.complaints()
        guard complaints.isEmpty else {
            throw BenchmarkError("the guest's kernel complains: \(complaints)")
        }
        section.rows = Self.patterns.map { pattern in
            Self.row(pattern.name, direct[pattern.name] ?? [], passed[pattern.name] ?? [])
        }
        return section
    }

    /// What one run of fio tells.
    private struct Outcome {
        let megabytesPerSecond: Double
        /// Of a request, in microseconds.
        let middle: Double
        let worst: Double
    }

    private static func row(_ name: String, _ host: [Outcome], _ guest: [Outcome]) -> Report.Row {
        let rates = (
            host: median(host.map(\.megabytesPerSecond)),
            guest: median(guest.map(\.megabytesPerSecond))
        )
        return Report.Row(
            name: name,
            values: [
                "host MB/s": rates.host, "guest MB/s": rates.guest,
                "ratio": rates.guest / rates.host,
                "host p50": median(host.map(\.middle)), "guest p50": median(guest.map(\.middle)),
                "host p99": median(host.map(\.worst)), "guest p99": median(guest.map(\.worst)),
            ])
    }

    private static func measure(_ shell: some Shell) throws -> [String: [Outcome]] {
        let disk = try shell.disk()
        var outcomes: [String: [Outcome]] = [:]
        for _ in 0..<rounds {
            for pattern in patterns {
                let line = try shell.run(
                    """
                    set -o pipefail
                    fio --name=job --filename=\(disk) --direct=1 --ioengine=libaio --thread \
                        --size=64M --time_based --runtime=\(seconds) --minimal \
                        \(pattern.arguments) | tail -n 1
                    """)
                outcomes[pattern.name, default: []].append(try outcome(line))
            }
        }
        return outcomes
    }

    /// fio's terse format: rates in KiB/s, times in microseconds; of reads and of writes, one of which
    /// is zero.
    private static func outcome(_ line: String) throws -> Outcome {
        let fields = line.split(separator: ";", omittingEmptySubsequences: false)
        guard fields.count > 47, let read = Double(fields[6]), let written = Double(fields[47])
        else { throw BenchmarkError("fio says: \(line)") }
        func percentile(_ name: String) -> Double {
            fields.lazy.filter { $0.hasPrefix("\(name)%=") }
                .compactMap { Double($0.split(separator: "=")[1]) }.max() ?? 0
        }
        return Outcome(
            megabytesPerSecond: (read + written) * 1024 / 1e6,
            middle: percentile("50.000000"), worst: percentile("99.000000"))
    }
}
