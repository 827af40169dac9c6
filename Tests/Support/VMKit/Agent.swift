// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc

/// The host's end of the agent in a guest (scripts/bed/guest/agent), which runs one shell command
/// at a time and returns its output and status.
final class Agent {
    private let channel: Channel
    private let path: String
    private var commands = 0

    init(path: String) throws {
        self.path = path
        channel = try Channel(path: path, name: "the guest's agent")
    }

    /// Waits for the agent's ready line, which it sends once a boot.
    func waitUntilReady(before deadline: Deadline) throws {
        while let line = try channel.line(before: deadline) {
            if isReady(line) { return record(line) }
        }
        throw VMError("the guest did not come up in time")
    }

    /// Whether a line is the agent's ready line, which contains the kernel's boot ID.
    private func isReady(_ line: String) -> Bool {
        line.hasPrefix("ready ") && UUID(uuidString: String(line.dropFirst(6))) != nil
    }

    /// Appends a line to a log beside the socket, for the analysis of failures and slow tests.
    private func record(_ text: String) {
        guard let file = fopen("\(path).log", "a") else { return }
        fputs("\(Date()) \(text)\n", file)
        fclose(file)
    }

    /// Runs one command to its end.
    func run(_ command: String, timeout: Duration) throws -> CommandResult {
        commands += 1
        let nonce = "\(commands)-\(UInt64.random(in: 0...UInt64.max))"
        let deadline = Deadline(timeout)
        let start = ContinuousClock.now
        let escaped =
            command
            .replacingOccurrences(of: "\\", with: "\\\\")
            .replacingOccurrences(of: "\n", with: "\\n")
        try channel.send(line: "\(nonce) \(escaped)")
        var lines: [String] = []
        while let line = try channel.line(before: deadline) {
            guard line.hasPrefix("\(nonce) ") else {
                if isReady(line) { throw VMError("the guest rebooted during: \(command)") }
                lines.append(line)
                continue
            }
            // The agent puts its status on a line of its own, which adds one end of line.
            let status = line.split(separator: " ").last.flatMap { Int32($0) } ?? -1
            record("\(ContinuousClock.now - start), status \(status): \(command)")
            return CommandResult(
                status: status,
                output: lines.joined(separator: "\n")
                    .trimmingCharacters(in: .whitespacesAndNewlines))
        }
        throw VMError(
            "timeout after \(timeout): \(command)",
            detail: lines.suffix(20).joined(separator: "\n"))
    }
}

/// The result of a shell command in a guest.
public struct CommandResult: Sendable {
    /// The shell's exit status.
    public let status: Int32
    /// Both output streams, without surrounding white space.
    public let output: String
}
