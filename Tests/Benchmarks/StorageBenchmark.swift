// SPDX-License-Identifier: Apache-2.0

import Foundation
import GuestKit

/// A guest's driver uses an image in memory through the real program and its real socket; no
/// virtual machine is in the way. Beside each case, in turns with it, one thread does the same to
/// the file.
struct StorageBenchmark {
    static let title = "Storage without a virtual machine"
    private static let sizes = [512, 4096, 65536, 1 << 20]
    /// Commands on the rings at a time: as much data as the guest's memory has room for.
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
                    + "\(Self.fullDepth(1 << 20))); otherwise each transfer is waited for.",
                "'on disk': the image is in the page cache of a disk's file system, not in one that "
                    + "is memory.",
                "file MB/s: preadv or pwritev of that size by one thread on the same file, in turns "
                    + "with ours; ratio: the median of ours by that.",
                "p50, p99: µs from before a doorbell is written to the interrupt, one transfer.",
                "CPU: µs of the program's processor time a command; file CPU: the same of the one "
                    + "thread; added: µs a transfer beyond that.",
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
        // The same where the page cache lies on a disk, as far as its file system lets.
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
        var ours: [Sample] = []
        var raw: [Sample] = []
        for _ in 0..<Settings.rounds {
            raw.append(try file.run(.time(Settings.time / 2)))
            ours.append(try load.run(.time(Settings.time)) { program.processorTime })
        }
        try program.terminate()
        let latencies = ours.flatMap(\.latencies)
        let cpu = median(ours.map(\.microsecondsOfProcessor))
        let fileCPU = median(raw.map(\.microsecondsOfProcessor))
        var values = [
            "MB/s": median(ours.map(\.megabytesPerSecond)),
            "file MB/s": median(raw.map(\.megabytesPerSecond)),
            "ratio": median(zip(ours, raw).map { $0.megabytesPerSecond / $1.megabytesPerSecond }),
            "IOPS": median(ours.map(\.commandsPerSecond)),
            "CPU": cpu, "file CPU": fileCPU, "added": (cpu - fileCPU) / 3,
        ]
        if !full {
            values["p50"] = percentile(latencies, 0.5)
            values["p99"] = percentile(latencies, 0.99)
        }
        return Report.Row(name: name, values: values)
    }
}
