// SPDX-License-Identifier: Apache-2.0

import Foundation
import GuestKit

/// A benchmark of a stick whose image is in memory, through the socket of the real program and
/// without a virtual machine.
///
/// Each case alternates with one thread that reads or writes the file directly.
struct StorageBenchmark {
    static let title = "Storage without a virtual machine"
    private static let sizes = [512, 4096, 65536, 1 << 20]
    /// The number of commands in flight, limited by the guest's memory.
    static func fullDepth(_ size: Int) -> Int { min(32, max(8, (8 << 20) / size)) }

    static func name(_ direction: StickLoad.Direction, _ size: Int, full: Bool) -> String {
        "\(direction.rawValue) \(sizeName(size))\(full ? ", full" : "")"
    }

    let folder: URL

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "A command is three transfers: command, data, status. 'full': the rings hold "
                    + "\(Self.fullDepth(512)) commands (of 1 MiB "
                    + "\(Self.fullDepth(1 << 20))); otherwise one transfer is in flight.",
                "'on disk': the image is a file of a disk's file system, in the page cache; the others "
                    + "are in tmpfs.",
                "file MB/s: preadv or pwritev of that size by one thread on the same file, measured "
                    + "alternately; ratio: the median of MB/s divided by file MB/s.",
                "p50, p99: µs from the doorbell write to the interrupt, of one transfer.",
                "CPU: µs of the program's processor time per command; file CPU: the same of the one "
                    + "thread; added: the difference per transfer.",
            ],
            columns: [
                "MB/s", "file MB/s", "ratio", "IOPS", "p50", "p99", "CPU", "file CPU", "added",
            ])
        section.plots = [
            Plot(
                file: "storage", title: "\(Self.title): MB/s", columns: ["MB/s", "file MB/s"]),
            Plot(file: "storage-cpu", title: "Processor time, µs", columns: ["CPU", "file CPU"]),
        ]
        let image = folder.appending(path: "stick.img").path
        try makeImage(image)
        for size in Self.sizes {
            for direction in StickLoad.Direction.allCases {
                for full in [false, true] {
                    let name = Self.name(direction, size, full: full)
                    section.rows.append(try measure(name, direction, size, full: full, image))
                }
            }
        }
        // The same with an image on a disk's file system.
        try FileManager.default.createDirectory(
            at: Settings.output, withIntermediateDirectories: true)
        let diskImage = Settings.output.appending(path: "stick.img").path
        try makeImage(diskImage)
        defer { try? FileManager.default.removeItem(atPath: diskImage) }
        for size in [4096, 65536] {
            for direction in StickLoad.Direction.allCases {
                let name = Self.name(direction, size, full: true) + ", on disk"
                section.rows.append(try measure(name, direction, size, full: true, diskImage))
            }
        }
        return section
    }

    private func makeImage(_ path: String) throws {
        _ = FileManager.default.createFile(atPath: path, contents: nil)
        let file = try FileHandle(forWritingTo: URL(filePath: path))
        for number in 0..<StickLoad.span >> 20 {
            try file.write(contentsOf: Data(repeating: UInt8(number), count: 1 << 20))
        }
        try file.close()
    }

    private func measure(
        _ name: String, _ direction: StickLoad.Direction, _ size: Int, full: Bool, _ image: String
    ) throws -> Report.Row {
        progress("native: \(name)")
        let depth = full ? Self.fullDepth(size) : 1
        let program = try RunningProgram(devices: ["storage:file=\(image)"], folder: folder)
        let stick = try GuestStick(program.boot(), ring: [1024])
        _ = try stick.blockCount()
        let load = try StickLoad(stick, direction, size: size, depth: depth)
        let file = try RawFile(path: image, like: load)
        _ = try load.run(.time(Settings.time / 4)) { program.processorTime }
        _ = try file.run(.time(Settings.time / 8))
        var samples: [Sample] = []
        var raw: [Sample] = []
        for _ in 0..<Settings.rounds {
            raw.append(try file.run(.time(Settings.time / 2)))
            samples.append(try load.run(.time(Settings.time)) { program.processorTime })
        }
        try program.terminate()
        let latencies = samples.flatMap(\.latencies)
        let cpu = median(samples.map(\.microsecondsOfProcessor))
        let fileCPU = median(raw.map(\.microsecondsOfProcessor))
        var values = [
            "MB/s": median(samples.map(\.megabytesPerSecond)),
            "file MB/s": median(raw.map(\.megabytesPerSecond)),
            "ratio": median(
                zip(samples, raw).map { $0.megabytesPerSecond / $1.megabytesPerSecond }),
            "IOPS": median(samples.map(\.commandsPerSecond)),
            "CPU": cpu, "file CPU": fileCPU, "added": (cpu - fileCPU) / 3,
        ]
        if !full {
            values["p50"] = percentile(latencies, 0.5)
            values["p99"] = percentile(latencies, 0.99)
        }
        return Report.Row(name: name, values: values)
    }
}
