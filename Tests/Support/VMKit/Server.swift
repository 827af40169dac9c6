// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc

/// The real usbvfiod on this host, serving some devices. It dies with its last reference.
public final class Server {
    private let process: ChildProcess
    /// Where VMMs find it.
    public let socket: String
    /// Where it takes requests.
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
                guard process.isRunning else { throw VMError("usbvfiod exited at its start") }
                return isListening ? true : nil
            }
        } catch {
            throw VMError("\(error)", detail: log)
        }
    }

    /// The program under test: USBVFIOD_BINARY, or what was built along with the tests.
    public static let binary: String =
        ProcessInfo.processInfo.environment["USBVFIOD_BINARY"]
        ?? URL(filePath: "/proc/self/exe").resolvingSymlinksInPath()
        .deletingLastPathComponent().appending(path: "usbvfiod").path

    /// Whether it was built with a sanitizer, which has memory of its own.
    public static var isSanitized: Bool {
        ["ASAN_OPTIONS", "TSAN_OPTIONS"].contains {
            ProcessInfo.processInfo.environment[$0] != nil
        }
    }

    /// Asks it for something with a subcommand of its own, which must succeed.
    public func control(_ arguments: String...) throws {
        let program = try CompletedProgram(
            [Self.binary] + arguments + ["--control-path", controlSocket])
        guard program.status == 0 else {
            throw VMError(
                "\(arguments) ended with status \(program.status)", detail: program.errors)
        }
    }

    /// Whether it still runs.
    public var isRunning: Bool { process.isRunning }

    /// What it said.
    public var log: String { process.output }

    /// Ends it as a service manager would, and returns its exit status.
    @discardableResult
    public func terminate() throws -> Int32 {
        process.send(signal: SIGTERM)
        return try process.waitForExit(within: .seconds(30))
    }

    /// Ends it without a chance to do anything about it.
    public func kill() { process.kill() }

    /// Its last word at the start. A connection would be a client of it, and asking the kernel's table
    /// of sockets was twice seen to miss one that listened; why is not known.
    private var isListening: Bool { log.contains("control requests at \(controlSocket)") }
}
