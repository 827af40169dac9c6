// SPDX-License-Identifier: Apache-2.0

import Foundation
import VMKit

/// A host's stick, used by the host itself and then through usbvfiod by a guest, which has another
/// one through QEMU's own `usb-host`. The host is the outer of two guests of the test bed, and its
/// sticks are on a bus that QEMU emulates.
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

    /// The program that passes the stick to the guest that measures.
    private enum Way: String, CaseIterable {
        case host
        case usbvfiod
        case qemu = "usb-host"
    }

    /// Why there is no such host here, if so.
    static func absence() -> String? {
        if case .failure(let error) = Bed.current { return "\(title): \(error)" }
        return Bed.nestingProblem.map { "\(title): \($0)" }
    }

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "MB/s of fio with direct access, one request at a time, medians of \(Self.rounds) "
                    + "rounds. host: the host's own kernel; usbvfiod: a guest of that host; usb-host: "
                    + "the same guest with a second stick, by QEMU's means. by …: usbvfiod's by "
                    + "theirs. p50: µs a request.",
                "The host is itself a guest, its sticks QEMU's, its bus qemu-xhci. "
                    + (Bed.hasKVM
                        ? "Both are under KVM."
                        : "Its processor is software (TCG), and so are the changes between it and its "
                            + "guest, which is what limits the guest."),
            ],
            columns: Way.allCases.map(\.rawValue) + ["by host", "by usb-host"]
                + Way.allCases.map { "\($0.rawValue) p50" })
        section.plots = [
            Plot(
                file: "passthrough", title: "\(Self.title): MB/s",
                columns: Way.allCases.map(\.rawValue))
        ]
        let outcomes = try measure()
        section.rows = Self.patterns.indices.map { index in
            var values: [String: Double] = [:]
            var rates: [Way: [Double]] = [:]
            for way in Way.allCases {
                let outcomes = (outcomes[way] ?? []).map { $0[index] }
                rates[way] = outcomes.map(\.megabytesPerSecond)
                values[way.rawValue] = median(outcomes.map(\.megabytesPerSecond))
                values["\(way.rawValue) p50"] = median(outcomes.map(\.microseconds))
            }
            for other in [Way.host, .qemu] {
                values["by \(other.rawValue)"] = median(
                    zip(rates[.usbvfiod] ?? [], rates[other] ?? []).map { $0 / $1 })
            }
            return Report.Row(name: Self.patterns[index].name, values: values)
        }
        return section
    }

    // MARK: - The machines

    private func measure() throws -> [Way: [[Outcome]]] {
        progress("passthrough: booting a host")
        let lab = try Lab()
        var devices = [Machine.Device.controller]
        for way in [Way.usbvfiod, .qemu] {
            let image = try lab.image(mebibytes: 64)
            devices.append(
                .qemu(
                    "-drive", "if=none,id=\(way.rawValue),format=raw,file=\(image.path)",
                    "-device",
                    "usb-storage,bus=usb.0,drive=\(way.rawValue),serial=\(way.rawValue)"))
        }
        let host = try lab.bootHost(.stable, devices: devices)
        var outcomes: [Way: [[Outcome]]] = [:]
        let disk = try host.disk(serial: Way.usbvfiod.rawValue)
        for round in 1...Self.rounds {
            progress("passthrough: the host uses its stick, round \(round)")
            outcomes[.host, default: []].append(try Self.run(host, disk))
        }
        let port = try host.port(ofDisk: host.disk(serial: Way.qemu.rawValue))
        try host.serve("host:port=\(host.port(ofDisk: disk).name)")
        progress("passthrough: booting its guest")
        let guest = try host.bootInner(
            .stable,
            devices: [
                .usbvfiod("\(GuestHost.serverFolder)/socket"), .controller,
                .qemu(
                    "-device",
                    "usb-host,bus=usb.0,hostbus=\(port.bus),hostport=\(port.path)"),
            ])
        let disks = try [Way.usbvfiod, .qemu].map { ($0, try guest.disk(serial: $0.rawValue)) }
        for round in 1...Self.rounds {
            progress("passthrough: the guest uses both sticks, round \(round)")
            for (way, disk) in disks {
                outcomes[way, default: []].append(try Self.run(guest, disk))
            }
        }
        let complaints = try guest.complaints()
        guard complaints.isEmpty else {
            throw BenchmarkError("the guest's kernel complains: \(complaints)")
        }
        return outcomes
    }

    // MARK: - fio

    /// The result of one run of fio.
    private struct Outcome {
        let megabytesPerSecond: Double
        /// The median of a request's.
        let microseconds: Double
    }

    /// All patterns, once.
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

    /// fio's terse format: rates in KiB/s, times in microseconds; of reads and of writes, one of
    /// which is zero.
    private static func outcome(_ line: String) throws -> Outcome {
        let fields = line.split(separator: ";", omittingEmptySubsequences: false)
        guard fields.count > 47, let read = Double(fields[6]), let written = Double(fields[47])
        else { throw BenchmarkError("fio says: \(line)") }
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

    /// Where the stick of a disk is plugged in: the number of its bus, its ports, and both as the
    /// kernel calls it.
    fileprivate func port(ofDisk disk: String) throws -> (bus: String, path: String, name: String) {
        let name = try run(
            "cd -P /sys/block/\(disk.dropFirst(5))/device/../../../.. && basename $PWD"
        ).trimmingCharacters(in: .whitespacesAndNewlines)
        let parts = name.split(separator: "-").map(String.init)
        guard parts.count == 2 else { throw BenchmarkError("\(disk) is at \(name)") }
        return (parts[0], parts[1], name)
    }
}
