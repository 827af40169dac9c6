// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestKit

/// The results: tables of measurements, the targets, and the parts that could not be measured.
struct Report: Codable {
    /// A table of the report.
    struct Section: Codable {
        let title: String
        /// The meaning of the columns.
        var notes: [String] = []
        let columns: [String]
        var rows: [Row] = []
        /// The charts of the table.
        var plots: [Plot] = []
    }

    /// A case and its values, by column.
    struct Row: Codable {
        let name: String
        let values: [String: Double]
    }

    var machine: [String: String] = [:]
    var date = ""
    var seconds = 0.0
    var sections: [Section] = []
    var skipped: [String] = []
    /// The targets and whether they are met.
    var targets: [Target] = []

    struct Target: Codable {
        let name: String
        let limit: String
        let measured: Double
        let isMet: Bool
    }

    /// A value of a section.
    func value(_ column: String, of row: String, in title: String) -> Double? {
        sections.first { $0.title == title }?.rows.first { $0.name == row }?.values[column]
    }

    /// Compares the measurements with the targets.
    mutating func checkTargets() {
        func check(
            _ name: String, _ limit: String, _ value: Double?, _ isMet: (Double) -> Bool
        ) {
            guard let value else { return }
            targets.append(Target(name: name, limit: limit, measured: value, isMet: isMet(value)))
        }
        for direction in StickLoad.Direction.allCases {
            for size in [65536, 1 << 20] {
                let name = StorageBenchmark.name(direction, size, full: true)
                check(
                    "\(name): part of the file's rate", "at least 0.8",
                    value("ratio", of: name, in: StorageBenchmark.title)
                ) { $0 >= 0.8 }
            }
            let name = StorageBenchmark.name(direction, 4096, full: true)
            check(
                "\(name): µs of processor a transfer beyond the file's", "at most 6",
                value("added", of: name, in: StorageBenchmark.title)
            ) { $0 <= 6 }
            check(
                "\(name): heap allocations a command", "none",
                value("allocations", of: name, in: InstructionBenchmark.title)
            ) { $0 < 0.05 }
        }
        let process = ProcessBenchmark.title
        check("idle, µs of processor", "0", value("idle CPU", of: "16 devices", in: process)) {
            $0 == 0
        }
        check("resident, MB", "below 20", value("resident", of: "1 devices", in: process)) {
            $0 < 20
        }
    }

    // MARK: - Text

    var text: String {
        var lines = ["usbvfiod benchmarks, \(date)"]
        lines += machine.sorted { $0.key < $1.key }.map { "  \($0.key): \($0.value)" }
        for section in sections {
            lines += ["", section.title, ""]
            lines += Self.table(section)
            if !section.notes.isEmpty { lines.append("") }
            lines += section.notes.map { "  \($0)" }
        }
        if !targets.isEmpty { lines += ["", "Targets", ""] }
        for target in targets {
            lines.append(
                "  \(target.isMet ? "met   " : "missed") \(target.name): "
                    + "\(target.measured.short) (\(target.limit))")
        }
        if !skipped.isEmpty { lines += ["", "Not measured", ""] }
        lines += skipped.map { "  \($0)" }
        return lines.joined(separator: "\n") + "\n"
    }

    private static func table(_ section: Section) -> [String] {
        let cells =
            [[""] + section.columns]
            + section.rows.map { row in
                [row.name] + section.columns.map { row.values[$0]?.short ?? "-" }
            }
        let widths = (0...section.columns.count).map { column in
            cells.map { $0[column].count }.max() ?? 0
        }
        return cells.map { row in
            let padded = zip(row, widths).enumerated().map { index, cell in
                let space = String(repeating: " ", count: cell.1 - cell.0.count)
                return index == 0 ? cell.0 + space : space + cell.0
            }
            return "  " + padded.joined(separator: "  ")
        }
    }

    // MARK: - Files

    /// Writes the text, the JSON and the plots to a folder.
    func write(to folder: URL) throws {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Data(text.utf8).write(to: folder.appending(path: "results.txt"))
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        try encoder.encode(self).write(to: folder.appending(path: "results.json"))
        for section in sections {
            for plot in section.plots {
                try Data(plot.svg(of: section).utf8).write(
                    to: folder.appending(path: "\(plot.file).svg"))
            }
        }
    }
}

/// The processor, the kernel and the load of this machine.
func describeMachine() -> [String: String] {
    func file(_ path: String) -> String { kernelFile(path) ?? "" }
    let model =
        file("/proc/cpuinfo").split(separator: "\n").first { $0.hasPrefix("model name") }
        .flatMap { $0.split(separator: ":").last }.map { $0.trimmingCharacters(in: .whitespaces) }
    return [
        "processor": model ?? "unknown",
        "processors": "\(ProcessInfo.processInfo.activeProcessorCount)",
        "kernel": file("/proc/sys/kernel/osrelease").trimmingCharacters(in: .newlines),
        "load before": file("/proc/loadavg").split(separator: " ").first.map(String.init) ?? "",
    ]
}
