// SPDX-License-Identifier: Apache-2.0

import Foundation
import Platform
import TestKit
import VMKit

/// A fault for strace to inject: one failing system call in each thread.
struct CallFault: CustomStringConvertible, Sendable {
    let call: String
    let error: String
    /// The number of the call among those of its name in its thread, from 1.
    let number: Int

    var description: String { "\(call):error=\(error):when=\(number)" }

    init(call: String, error: String, number: Int) {
        self.call = call
        self.error = error
        self.number = number
    }

    /// Parses a ``description``.
    init?(_ text: String) {
        let parts = text.split(separator: ":")
        guard parts.count == 3, parts[1].hasPrefix("error="), parts[2].hasPrefix("when="),
            let number = Int(parts[2].dropFirst(5))
        else { return nil }
        self.init(call: String(parts[0]), error: String(parts[1].dropFirst(6)), number: number)
    }
}

/// The built program under strace, which makes system calls fail or records them.
///
/// strace is the program's child (`-D`), so signals, exit status and `/proc` are the program's own.
struct TracedServer {
    /// Whether this machine allows tracing; containers often do not.
    static let isPossible: Bool = {
        guard let folder = try? TemporaryFolder(),
            let child = try? ChildProcess(
                ["strace", "-D", "-f", "-e", "trace=execve", "-o", folder.file("trace"), "true"],
                output: folder.file("log")),
            (try? child.waitForExit(within: .seconds(60))) == 0
        else { return false }
        return child.output.isEmpty
    }()

    let server: RunningServer
    private let trace: String

    /// Starts the program.
    ///
    /// - Parameter fault: the fault to inject; with `nil` all calls of the names are recorded.
    init(
        calls: [String], fault: CallFault?, _ arguments: [String], folder: TemporaryFolder
    ) throws {
        let name = UUID().uuidString.prefix(8)
        trace = folder.file("trace-\(name)")
        var command = [
            "strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", trace,
            "-e", "trace=" + calls.joined(separator: ","), "-e", "signal=none",
        ]
        if let fault { command += ["-e", "inject=\(fault)"] }
        server = RunningServer(
            try ChildProcess(
                command + [Server.binary] + arguments, output: folder.file("log-\(name)")))
    }

    /// Whether the fault has been injected.
    func hasMetFault() throws -> Bool {
        try String(contentsOfFile: trace, encoding: .utf8).contains("(INJECTED)")
    }

    /// A recorded system call.
    struct Call {
        let thread: Int
        let name: String
        let text: String
        /// The number of the call among those of its name in its thread, from 1.
        let number: Int
    }

    /// The recorded calls of a program that has ended, `exit_group` among them.
    func calls() throws -> [Call] {
        var counts: [String: Int] = [:]
        // strace ends after the program.
        try server.process.waitForEndOfOutput(within: .seconds(60))
        let text = try String(contentsOfFile: trace, encoding: .utf8)
        guard text.contains("exit_group(") else {
            throw VMError("the record of strace is incomplete")
        }
        return text.split(separator: "\n")
            .compactMap { line in
                let parts = line.split(separator: " ", maxSplits: 1)
                guard parts.count == 2, let thread = Int(parts[0]) else { return nil }
                let text = parts[1].drop { $0 == " " }
                guard let end = text.firstIndex(of: "("), !text.hasPrefix("<") else { return nil }
                let name = String(text[..<end])
                let number = counts["\(thread) \(name)", default: 0] + 1
                counts["\(thread) \(name)"] = number
                return Call(thread: thread, name: name, text: String(text), number: number)
            }
    }
}
