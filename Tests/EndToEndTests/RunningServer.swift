// SPDX-License-Identifier: Apache-2.0

import Foundation
import Platform
import TestKit
import VFIOClient
import VMKit

/// The built program as a running server, which ends with the test.
final class RunningServer {
    let process: ChildProcess

    /// Starts the program and waits until it listens.
    init(_ arguments: [String], folder: TemporaryFolder) throws {
        process = try ChildProcess(
            [Server.binary] + arguments, output: folder.file("log-\(UUID().uuidString.prefix(4))"))
        try waitForLog("listening at")
    }

    /// Starts the program with devices and a socket in the folder.
    convenience init(devices: [String] = [], folder: TemporaryFolder) throws {
        try self.init(
            ["--socket-path", folder.file("socket")] + devices.flatMap { ["--device", $0] },
            folder: folder)
    }

    /// Takes ownership of a process that was started in another way.
    init(_ process: ChildProcess) { self.process = process }

    var log: String { process.output }

    func waitForLog(_ text: String) throws {
        try process.wait(for: "'\(text)' in the log, which is:\n\(log)", within: .seconds(60)) {
            if log.contains(text) { return true }
            if !process.isRunning { throw VMError("the server ended", detail: log) }
            return nil
        }
    }

    /// Ends the program with a signal, as a service manager does.
    ///
    /// - Returns: its exit status.
    func terminate(_ signal: Int32 = SIGTERM) throws -> Int32 {
        process.send(signal: signal)
        return try process.waitForExit(within: .seconds(60))
    }

    /// The files behind its open descriptors.
    func openDescriptors() throws -> [String] {
        let folder = "/proc/\(process.processID)/fd"
        return try FileManager.default.contentsOfDirectory(atPath: folder).sorted()
            .compactMap {
                try? FileManager.default.destinationOfSymbolicLink(atPath: "\(folder)/\($0)")
            }
    }

    /// The number of its mappings of guest memory.
    func mappings() throws -> Int {
        guard let maps = kernelFile("/proc/\(process.processID)/maps") else {
            throw VMError("the server has ended")
        }
        return maps.split(separator: "\n").count { $0.contains("memfd:") }
    }
}
