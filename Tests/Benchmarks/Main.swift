// SPDX-License-Identifier: Apache-2.0

import Foundation
import VMKit

/// The benchmark program, which `make bench` runs; docs/benchmarks.md describes it.
@main
struct Benchmarks {
    static func main() throws {
        let folder = try scratchFolder()
        defer { try? FileManager.default.removeItem(at: folder) }
        let start = ContinuousClock.now
        var report = Report()
        report.date = ISO8601DateFormatter().string(from: Date())
        report.machine = describeMachine()

        for part in Part.allCases where Settings.includes(part.rawValue) {
            do {
                try part.run(folder, &report)
            } catch {
                progress("\(part.rawValue) FAILED: \(error)")
                // The report has the first line; the details are in the output above.
                let reason = "\(error)".split(separator: "\n").first ?? ""
                report.skipped.append("\(part.rawValue): \(reason)")
            }
        }
        report.checkTargets()
        report.seconds = (ContinuousClock.now - start).inSeconds
        try report.write(to: Settings.output)
        print(report.text)
        progress("after \(report.seconds.short) s: \(Settings.output.path)/results.{txt,json}")
    }

    /// A folder for images and sockets, in memory if possible.
    private static func scratchFolder() throws -> URL {
        let isAvailable = FileManager.default.isWritableFile(atPath: "/dev/shm")
        let name = "usbvfiod-bench-\(ProcessInfo.processInfo.processIdentifier)"
        let folder = URL(filePath: isAvailable ? "/dev/shm" : "/tmp").appending(path: name)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        return folder
    }
}

/// A part of the benchmarks that can be run on its own.
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
            guard RunningProgram.hasBackend("loopback") else {
                report.skipped.append(
                    "\(LoopbackBenchmark.title): the program has no loopback backend")
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
            guard RunningProgram.hasBackend("loopback") else {
                report.skipped.append(
                    "\(InterrupterBenchmark.title): the program has no loopback backend")
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
                // Inner guests on an emulated processor hang now and then.
                progress("*** passthrough, run again: \(error) ***")
                report.sections.append(try PassthroughBenchmark().run())
            }
        }
    }
}
