// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import GuestKit
import RemoteGuest
import VFIOClient
import VMKit

/// The reason why a benchmark could not be run.
struct BenchmarkError: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}

/// A running `usbvfiod`, on its own or under a tool such as valgrind.
final class RunningProgram {
    private let process: ChildProcess
    let socket: String
    /// The time from the start of the process to its log line "listening at".
    let startTime: Duration

    /// - Parameters:
    ///   - devices: the arguments of `--device`.
    ///   - wrapper: a command that runs the program named by its last arguments.
    init(
        devices: [String], wrapper: [String] = [], binary: String = Server.binary, folder: URL
    ) throws {
        let name = String(UInt32.random(in: 0 ... .max), radix: 36)
        socket = folder.appending(path: "\(name).socket").path
        let start = ContinuousClock.now
        let process = try ChildProcess(
            wrapper + [binary, "--socket-path", socket] + devices.flatMap { ["--device", $0] },
            output: folder.appending(path: "\(name).log").path)
        try process.wait(for: "\(binary) to come up", within: .seconds(60)) {
            guard process.isRunning else {
                throw BenchmarkError("usbvfiod has exited: \(process.output)")
            }
            return process.output.contains("listening at") ? true : nil
        }
        startTime = ContinuousClock.now - start
        self.process = process
    }

    /// Sends SIGTERM, as a service manager does, and waits for the exit of the program and of the
    /// tool.
    func terminate() throws {
        process.send(signal: SIGTERM)
        try process.waitForExit(within: .seconds(60))
        try process.waitForEndOfOutput(within: .seconds(60))
    }

    /// Waits until the main thread sleeps and the program has used no processor time for 30 ms.
    func waitUntilAsleep() throws { try process.waitUntilAsleep() }

    /// Waits for `time`, and fails if the program exits.
    func idle(for time: Duration) throws { try process.watch(for: time) }

    /// The processor time that all threads of the program have used.
    var processorTime: Duration { process.processorTime }

    /// A field of `/proc/PID/status` in KiB.
    func memory(_ field: String) -> Double { Double(process.memory(field)) }

    /// Connects a guest and starts the controller. The driver reads events after interrupts.
    ///
    /// - Parameter interrupters: the number of interrupters that the driver uses.
    func boot(memory size: Int = 64 << 20, interrupters: Int = 1) throws -> GuestDriver {
        let memory = try GuestRAM(size: size)
        let machine = try VMMKind.cloudHypervisor.start(
            memory: memory, wire: WireClient(path: socket))
        var options = GuestDriver.Options()
        options.waitsForInterrupts = true
        options.eventRings = Array(repeating: [1024], count: interrupters)
        let driver = GuestDriver(machine, options)
        try driver.start()
        return driver
    }

    /// Whether the program has a backend of this name.
    static func hasBackend(_ backend: String) -> Bool {
        let program = try? CompletedProgram([Server.binary, "backends", "--json"])
        return program?.output.contains("\"\(backend)\"") == true
    }
}

/// Creates a sparse file of zeroes.
func makeSparseFile(_ url: URL, count: Int) throws {
    _ = FileManager.default.createFile(atPath: url.path, contents: nil)
    let file = try FileHandle(forWritingTo: url)
    try file.truncate(atOffset: UInt64(count))
    try file.close()
}
