// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import GuestKit
import VMKit

/// A benchmark that counts instructions, heap allocations and system calls of a storage command,
/// with valgrind and strace: counts do not depend on the load of the machine.
///
/// Each count is the difference of two runs, one with some commands and one with many more, so that
/// start, enumeration and end cancel out.
struct InstructionBenchmark {
    static let title = "Cost of a storage command"

    private static let cases: [(StickLoad.Direction, size: Int, full: Bool)] = [
        (.read, 4096, false), (.read, 4096, true), (.write, 4096, true), (.read, 65536, true),
        (.write, 65536, true),
    ]
    private static let few = 64
    private static let more = 512

    private enum Tool: String, CaseIterable {
        case valgrind
        case strace
    }

    let folder: URL

    func run(skipped: inout [String]) throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "instructions: those of the program, without the kernel's; allocations: calls of "
                    + "malloc and similar functions; calls: system calls. All per command of three "
                    + "transfers, with an image in memory."
            ],
            columns: ["instructions", "allocations", "calls"])
        let image = folder.appending(path: "counted.img").path
        try makeSparseFile(URL(filePath: image), count: StickLoad.span)
        let tools = Tool.allCases.filter { tool in
            if Settings.has(tool.rawValue) { return true }
            skipped.append("\(Self.title): \(tool.rawValue) is not installed")
            return false
        }
        var values = [[String: Double]](repeating: [:], count: Self.cases.count)
        for tool in tools {
            for (index, (direction, size, full)) in Self.cases.enumerated() {
                let name = StorageBenchmark.name(direction, size, full: full)
                progress("instructions: \(name), \(tool.rawValue)")
                func count(_ commands: Int) throws -> [String: Double] {
                    try self.count(tool, image, direction, size, full: full, commands)
                }
                let start = try count(Self.few)
                let end = try count(Self.few + Self.more)
                for (column, total) in end {
                    values[index][column] = (total - (start[column] ?? 0)) / Double(Self.more)
                }
            }
        }
        section.rows = zip(Self.cases, values).map { one, values in
            Report.Row(name: StorageBenchmark.name(one.0, one.size, full: one.full), values: values)
        }
        return section
    }

    private func count(
        _ tool: Tool, _ image: String, _ direction: StickLoad.Direction, _ size: Int, full: Bool,
        _ commands: Int
    ) throws -> [String: Double] {
        // Valgrind cannot read the debug information of newer compilers. It needs only symbols.
        let binary = folder.appending(path: "usbvfiod")
        if !FileManager.default.fileExists(atPath: binary.path) {
            try CompletedProgram.firstLine(
                of: "strip", "--strip-debug", "-o", binary.path, Server.binary)
        }
        // The profile is kept for callgrind_annotate.
        let name = StorageBenchmark.name(direction, size, full: full)
        let output = Settings.output.appending(
            path: "\(tool.rawValue)-\(name.filter { $0.isLetter || $0.isNumber })-\(commands).out")
        try FileManager.default.createDirectory(
            at: Settings.output, withIntermediateDirectories: true)
        try? FileManager.default.removeItem(at: output)
        let wrapper =
            switch tool {
            case .valgrind:
                [
                    "valgrind", "--tool=callgrind", "--compress-strings=no", "--compress-pos=no",
                    "--dump-instr=no", "--callgrind-out-file=\(output.path)",
                ]
            // With -D the program is the child process, which gets the signals and has the status.
            case .strace: ["strace", "-D", "-f", "-c", "-o", output.path]
            }
        let program = try RunningProgram(
            devices: ["storage:file=\(image)"], wrapper: wrapper, binary: binary.path,
            folder: folder)
        let stick = try GuestStick(program.boot(), ring: [1024])
        _ = try stick.blockCount()
        let load = try StickLoad(
            stick, direction, size: size, depth: full ? StorageBenchmark.fullDepth(size) : 1)
        _ = try load.run(.commands(commands)) { .zero }
        try program.terminate()
        return switch tool {
        case .valgrind: try Self.callgrind(output)
        case .strace: try Self.strace(output)
        }
    }

    private static let allocators: Set<String> = [
        "malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign",
    ]

    /// Reads the number of instructions and the number of allocator calls from a profile.
    private static func callgrind(_ url: URL) throws -> [String: Double] {
        var result: [String: Double] = ["instructions": 0, "allocations": 0]
        var isAllocator = false
        for line in try String(contentsOf: url, encoding: .utf8).split(separator: "\n") {
            if line.hasPrefix("cfn=") {
                isAllocator = allocators.contains(String(line.dropFirst(4)))
            } else if isAllocator, line.hasPrefix("calls=") {
                let count = line.dropFirst(6).split(separator: " ").first.flatMap { Double($0) }
                result["allocations", default: 0] += count ?? 0
                isAllocator = false
            } else if line.hasPrefix("totals: ") || line.hasPrefix("summary: ") {
                let count = line.split(separator: " ").last.flatMap { Double($0) }
                result["instructions"] = max(result["instructions"] ?? 0, count ?? 0)
            }
        }
        return result
    }

    /// Reads the number of system calls, the fourth field of the last line.
    private static func strace(_ url: URL) throws -> [String: Double] {
        let text = try String(contentsOf: url, encoding: .utf8)
        let fields = text.split(separator: "\n").last?.split(separator: " ") ?? []
        guard fields.last == "total", fields.count > 4, let count = Double(fields[3]) else {
            throw BenchmarkError("the output of strace has no total")
        }
        return ["calls": count]
    }
}
