// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc

/// A running usbvfiod on this host. It is killed with its last reference.
public final class Server {
    private let process: ChildProcess
    /// The socket for VMMs.
    public let socket: String
    /// The control socket.
    public let controlSocket: String

    init(devices: [String], folder: String) throws {
        socket = "\(folder)/socket"
        controlSocket = "\(folder)/control"
        process = try ChildProcess(
            [
                Self.binary, "--socket-path", socket, "--control-path", controlSocket, "-v",
            ]
                + devices.flatMap { ["--device", $0] },
            output: "\(folder)/usbvfiod.log")
        do {
            try process.wait(for: "usbvfiod to listen at \(socket)", within: .seconds(60)) {
                guard process.isRunning else { throw VMError("usbvfiod exited during its start") }
                return isListening ? true : nil
            }
        } catch {
            throw VMError("\(error)", detail: log)
        }
    }

    /// The program under test: USBVFIOD_BINARY, or the one built with the tests.
    public static let binary: String =
        ProcessInfo.processInfo.environment["USBVFIOD_BINARY"]
        ?? URL(filePath: "/proc/self/exe").resolvingSymlinksInPath()
        .deletingLastPathComponent().appending(path: "usbvfiod").path

    /// Whether the program was built with a sanitizer, which adds memory of its own.
    public static var isSanitized: Bool {
        ["ASAN_OPTIONS", "TSAN_OPTIONS"].contains {
            ProcessInfo.processInfo.environment[$0] != nil
        }
    }

    /// Runs a subcommand of usbvfiod against the server, which must succeed.
    public func control(_ arguments: String...) throws {
        let program = try CompletedProgram(
            [Self.binary] + arguments + ["--control-path", controlSocket])
        guard program.status == 0 else {
            throw VMError(
                "\(arguments) ended with status \(program.status)", detail: program.errors)
        }
    }

    /// Whether the program runs.
    public var isRunning: Bool { process.isRunning }

    /// The log.
    public var log: String { process.output }

    /// Sends SIGTERM, waits for the program's exit, and returns its status.
    @discardableResult
    public func terminate() throws -> Int32 {
        process.send(signal: SIGTERM)
        return try process.waitForExit(within: .seconds(30))
    }

    /// Sends SIGKILL and waits for the program's exit.
    public func kill() { process.kill() }

    /// Whether the last line of the program's start is in the log. A probing connection would be
    /// served as a client.
    private var isListening: Bool { log.contains("control requests at \(controlSocket)") }
}
