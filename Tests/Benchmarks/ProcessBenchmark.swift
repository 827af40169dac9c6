// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import GuestKit

/// What the program costs by being there.
struct ProcessBenchmark {
    static let title = "The whole program"
    private static let idleTime: Duration = .seconds(10)

    let folder: URL

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "start: ms from its start until it listens; idle CPU: µs of processor time in "
                    + "\(Self.idleTime.inSeconds.short) s, with a guest connected whose driver "
                    + "runs.",
                "memory: MB of its own (RssAnon) and of files (RssFile: the program and its "
                    + "libraries); the guest's memory is not counted. 'load': after reading and "
                    + "writing with full rings.",
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
            note(&running[index].values, running[index].program, "")
        }
        for index in running.indices {
            if index > 0 { try load(GuestStick(drivers[index], ring: [1024])) }
            note(&running[index].values, running[index].program, ", load")
            try running[index].program.terminate()
            section.rows.append(Report.Row(name: running[index].row, values: running[index].values))
        }
        return section
    }

    private func note(_ values: inout [String: Double], _ program: RunningProgram, _ when: String) {
        let own = program.memory("RssAnon") / 1024
        let file = program.memory("RssFile") / 1024
        values[when.isEmpty ? "own memory" : "own\(when)"] = own
        values["file memory"] = file
        values["resident\(when)"] = own + file
    }

    /// Sticks; half of many are on USB 2 ports, since there are eight of each kind.
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
