// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import GuestKit

/// A benchmark of the start, the idle processor time and the memory of the program.
struct ProcessBenchmark {
    static let title = "The whole program"
    private static let idleTime: Duration = .seconds(10)

    let folder: URL

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "start: ms from the start of the process until it listens; idle CPU: µs of processor "
                    + "time in \(Self.idleTime.inSeconds.short) s, with a guest whose driver runs.",
                "memory: MB of RssAnon ('own') and RssFile ('file': the program and its libraries), "
                    + "without the guest's memory. 'load': after reads and writes with full rings.",
            ],
            columns: [
                "start", "idle CPU", "own memory", "file memory", "resident", "own, load",
                "resident, load",
            ])
        var running: [(row: String, program: RunningProgram, values: [String: Double])] = []
        var drivers: [GuestDriver] = []
        for count in [0, 1, 4, 16] {
            let name = "\(count) devices"
            progress("process: \(name)")
            let devices = try devices(count)
            var starts: [Double] = []
            for _ in 0..<Settings.rounds {
                let program = try RunningProgram(devices: devices, folder: folder)
                starts.append(program.startTime.inMicroseconds / 1000)
                try program.terminate()
            }
            let program = try RunningProgram(devices: devices, folder: folder)
            drivers.append(try program.boot())
            running.append((name, program, ["start": median(starts)]))
        }
        progress("process: idle for \(Self.idleTime)")
        for (_, program, _) in running { try program.waitUntilAsleep() }
        let before = running.map(\.program.processorTime)
        try running.last?.program.idle(for: Self.idleTime)
        for index in running.indices {
            let used = running[index].program.processorTime - before[index]
            running[index].values["idle CPU"] = used.inMicroseconds
            recordMemory(&running[index].values, running[index].program, "")
        }
        for index in running.indices {
            if index > 0 { try load(GuestStick(drivers[index], ring: [1024])) }
            recordMemory(&running[index].values, running[index].program, ", load")
            try running[index].program.terminate()
            section.rows.append(Report.Row(name: running[index].row, values: running[index].values))
        }
        return section
    }

    private func recordMemory(
        _ values: inout [String: Double], _ program: RunningProgram, _ suffix: String
    ) {
        let own = program.memory("RssAnon") / 1024
        let file = program.memory("RssFile") / 1024
        values[suffix.isEmpty ? "own memory" : "own\(suffix)"] = own
        values["file memory"] = file
        values["resident\(suffix)"] = own + file
    }

    /// Returns the arguments for `count` sticks, 8 at USB 3 ports and the others at USB 2 ports.
    private func devices(_ count: Int) throws -> [String] {
        try (0..<count).map { number in
            let image = folder.appending(path: "stick-\(count)-\(number).img")
            try makeSparseFile(image, count: StickLoad.span)
            return "storage:file=\(image.path),speed=\(number < 8 ? "super" : "high")"
        }
    }

    private func load(_ stick: GuestStick) throws {
        _ = try stick.blockCount()
        for direction in StickLoad.Direction.allCases {
            for size in [4096, 1 << 20] {
                let load = try StickLoad(
                    stick, direction, size: size, depth: StorageBenchmark.fullDepth(size))
                _ = try load.run(.commands(512)) { .zero }
            }
        }
    }
}
