// SPDX-License-Identifier: Apache-2.0

import Foundation
import VMKit

/// Measures the built program; see docs/benchmarks.md. `make bench` runs it.
@main
struct Benchmarks {
    static func main() throws {
        let folder = try scratchFolder()
        defer { try? FileManager.default.removeItem(at: folder) }
        let start = ContinuousClock.now
        var report = Report()
        report.date = ISO8601DateFormatter().string(from: Date())
        report.machine = describeMachine()

        for part in Part.allCases where Settings.wants(part.rawValue) {
            do {
                try part.run(folder, &report)
            } catch {
                progress("\(part.rawValue) FAILED: \(error)")
                // The lines after the first are details of the cause.
                let reason = "\(error)".split(separator: "\n").first ?? ""
                report.skipped.append("\(part.rawValue): \(reason)")
            }
        }
        report.judge()
        report.seconds = (ContinuousClock.now - start).inSeconds
        try report.write(to: Settings.output)
        print(report.text)
        progress("after \(report.seconds.short) s: \(Settings.output.path)/results.{txt,json}")
    }

    /// Files that lie in memory, and sockets.
    private static func scratchFolder() throws -> URL {
        let isThere = FileManager.default.isWritableFile(atPath: "/dev/shm")
        let name = "usbvfiod-bench-\(ProcessInfo.processInfo.processIdentifier)"
        let folder = URL(filePath: isThere ? "/dev/shm" : "/tmp").appending(path: name)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        return folder
    }
}

/// What can be measured by itself.
enum Part: String, CaseIterable {
    case native
    case loopback
    case instructions
    case process
    case guest
    case passthrough

    func run(_ folder: URL, _ report: inout Report) throws {
        switch self {
        case .native: report.sections.append(try StorageBenchmark(folder: folder).run())
        case .loopback:
            guard RunningProgram.offers("loopback") else {
                report.skipped.append("\(LoopbackBenchmark.title): there is no loopback device")
                return
            }
            report.sections.append(try LoopbackBenchmark(folder: folder).run())
            report.sections.append(try InterruptBenchmark(folder: folder).run())
            report.sections.append(try IsochronousBenchmark(folder: folder).run())
        case .instructions:
            report.sections.append(
                try InstructionBenchmark(folder: folder).run(skipped: &report.skipped))
        case .process:
            report.sections.append(try ProcessBenchmark(folder: folder).run())
            guard RunningProgram.offers("loopback") else {
                report.skipped.append("\(InterrupterBenchmark.title): there is no loopback device")
                return
            }
            report.sections.append(try InterrupterBenchmark(folder: folder).run())
        case .guest:
            if let absence = GuestBenchmark.absence() {
                progress("*** \(absence) ***")
                report.skipped.append(absence)
                return
            }
            report.sections.append(try GuestBenchmark(folder: folder).run())
        case .passthrough:
            if let absence = PassthroughBenchmark.absence() {
                progress("*** \(absence) ***")
                report.skipped.append(absence)
                return
            }
            do {
                report.sections.append(try PassthroughBenchmark().run())
            } catch let error as GuestNotResponding {
                // A guest's guest under a software CPU does that now and then.
                progress("*** passthrough, once more: \(error) ***")
                report.sections.append(try PassthroughBenchmark().run())
            }
        }
    }
}
