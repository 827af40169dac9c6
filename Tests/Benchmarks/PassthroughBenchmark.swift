// SPDX-License-Identifier: Apache-2.0

import Foundation
import VMKit

/// A benchmark of a host's stick, used by the host itself and then, through usbvfiod, by a guest
/// that has a second stick through QEMU's own `usb-host`.
///
/// The host is the outer of two guests of the test bed, and its sticks are on a bus that QEMU
/// emulates.
struct PassthroughBenchmark {
    static let title = "A host's stick, passed through"
    private static let rounds = 3
    private static let seconds = 2

    private static let patterns: [(name: String, arguments: String)] = [
        ("read 4 KiB, random", "--rw=randread --bs=4k"),
        ("read 64 KiB", "--rw=read --bs=64k"),
        ("write 64 KiB", "--rw=write --bs=64k"),
        ("read 1 MiB", "--rw=read --bs=1M"),
    ]

    /// The software that provides the stick.
    private enum Provider: String, CaseIterable {
        case host
        case usbvfiod
        case qemu = "usb-host"
    }

    /// The reason why no such host can run on this machine, or `nil`.
    static func absence() -> String? {
        if case .failure(let error) = Bed.current { return "\(title): \(error)" }
        return Bed.nestingProblem.map { "\(title): \($0)" }
    }

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "MB/s of fio with direct access, one request at a time, medians of \(Self.rounds) "
                    + "rounds. host: the host's own kernel; usbvfiod: a guest of that host; "
                    + "usb-host: the same guest with a second stick, passed through by QEMU. by …: "
                    + "usbvfiod's rate divided by that of the other. p50: µs per request.",
                "The host is itself a guest, with QEMU's usb-storage on qemu-xhci. "
                    + (Bed.hasKVM
                        ? "Both are under KVM."
                        : "Its processor is emulated (TCG), including the switches between host and "
                            + "guest, which limits the guest."),
            ],
            columns: Provider.allCases.map(\.rawValue) + ["by host", "by usb-host"]
                + Provider.allCases.map { "\($0.rawValue) p50" })
        section.plots = [
            Plot(
                file: "passthrough", title: "\(Self.title): MB/s",
                columns: Provider.allCases.map(\.rawValue))
        ]
        let outcomes = try measure()
        section.rows = Self.patterns.indices.map { index in
            var values: [String: Double] = [:]
            var rates: [Provider: [Double]] = [:]
            for provider in Provider.allCases {
                let outcomes = (outcomes[provider] ?? []).map { $0[index] }
                rates[provider] = outcomes.map(\.megabytesPerSecond)
                values[provider.rawValue] = median(outcomes.map(\.megabytesPerSecond))
                values["\(provider.rawValue) p50"] = median(outcomes.map(\.microseconds))
            }
            for other in [Provider.host, .qemu] {
                values["by \(other.rawValue)"] = median(
                    zip(rates[.usbvfiod] ?? [], rates[other] ?? []).map { $0 / $1 })
            }
            return Report.Row(name: Self.patterns[index].name, values: values)
        }
        return section
    }

    // MARK: - Host and guest

    private func measure() throws -> [Provider: [[Outcome]]] {
        progress("passthrough: booting a host")
        let lab = try Lab()
        var devices = [Machine.Device.controller]
        for provider in [Provider.usbvfiod, .qemu] {
            let image = try lab.image(mebibytes: 64)
            devices.append(
                .qemu(
                    "-drive", "if=none,id=\(provider.rawValue),format=raw,file=\(image.path)",
                    "-device",
                    "usb-storage,bus=usb.0,drive=\(provider.rawValue),serial=\(provider.rawValue)"))
        }
        let host = try lab.bootHost(.stable, devices: devices)
        var outcomes: [Provider: [[Outcome]]] = [:]
        let disk = try host.disk(serial: Provider.usbvfiod.rawValue)
        for round in 1...Self.rounds {
            progress("passthrough: the host uses its stick, round \(round)")
            outcomes[.host, default: []].append(try Self.run(host, disk))
        }
        let port = try host.usbPort(ofDisk: host.disk(serial: Provider.qemu.rawValue))
        try host.serve("host:port=\(host.usbPort(ofDisk: disk).name)")
        progress("passthrough: booting its guest")
        let guest = try host.bootInner(
            .stable,
            devices: [
                .usbvfiod("\(GuestHost.serverFolder)/socket"), .controller,
                .qemu(
                    "-device",
                    "usb-host,bus=usb.0,hostbus=\(port.bus),hostport=\(port.path)"),
            ])
        let disks = try [Provider.usbvfiod, .qemu].map { ($0, try guest.disk(serial: $0.rawValue)) }
        for round in 1...Self.rounds {
            progress("passthrough: the guest uses both sticks, round \(round)")
            for (provider, disk) in disks {
                outcomes[provider, default: []].append(try Self.run(guest, disk))
            }
        }
        let complaints = try guest.complaints()
        guard complaints.isEmpty else {
            throw BenchmarkError("the guest's kernel has logged errors: \(complaints)")
        }
        return outcomes
    }

    // MARK: - fio

    /// The result of one run of fio.
    private struct Outcome {
        let megabytesPerSecond: Double
        /// The median latency of a request.
        let microseconds: Double
    }

    /// Runs each pattern once.
    private static func run(_ shell: some Shell, _ disk: String) throws -> [Outcome] {
        try patterns.map { pattern in
            try outcome(
                shell.run(
                    """
                    set -o pipefail
                    fio --name=job --filename=\(disk) --direct=1 --ioengine=psync --thread \
                        --size=64M --time_based --runtime=\(seconds) --minimal \
                        \(pattern.arguments) | tail -n 1
                    """))
        }
    }

    /// Parses fio's terse format: rates in KiB/s and times in microseconds of reads and of writes,
    /// one of which is zero.
    private static func outcome(_ line: String) throws -> Outcome {
        let fields = line.split(separator: ";", omittingEmptySubsequences: false)
        guard fields.count > 47, let read = Double(fields[6]), let written = Double(fields[47])
        else { throw BenchmarkError("fio has printed no result: \(line)") }
        let medians = fields.filter { $0.hasPrefix("50.000000%=") }
            .compactMap { Double($0.dropFirst(11)) }
        return Outcome(
            megabytesPerSecond: (read + written) * 1024 / 1e6, microseconds: medians.max() ?? 0)
    }
}

extension Shell {
    /// Waits for the disk of the stick with this serial number, and returns its device file.
    fileprivate func disk(serial: String) throws -> String {
        let find = "grep -lsx '\(serial)' /sys/block/sd*/device/../../../../serial | cut -d/ -f4"
        try wait(until: "[[ -n $(\(find)) ]]")
        let disk = try run(find).split(separator: "\n").first ?? ""
        try wait(until: "dmesg | grep -F '[\(disk)]' | tail -n 1 | grep -q Attached")
        return "/dev/\(disk)"
    }

    /// The USB port of a disk: bus number, port path, and the kernel's name, which joins both.
    fileprivate func usbPort(
        ofDisk disk: String
    ) throws -> (bus: String, path: String, name: String) {
        let name = try run(
            "cd -P /sys/block/\(disk.dropFirst(5))/device/../../../.. && basename $PWD"
        ).trimmingCharacters(in: .whitespacesAndNewlines)
        let parts = name.split(separator: "-").map(String.init)
        guard parts.count == 2 else { throw BenchmarkError("\(disk) is at \(name)") }
        return (parts[0], parts[1], name)
    }
}
