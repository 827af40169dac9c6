// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import GuestKit
import RemoteGuest
import VFIOClient
import VMKit

/// Why a benchmark could not be run.
struct BenchmarkError: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}

/// The built program while it serves, alone or under a tool that watches it.
final class RunningProgram {
    private let process: ChildProcess
    let socket: String
    /// From its start until it says that it listens.
    let startTime: Duration

    /// - Parameters:
    ///   - devices: what it serves.
    ///   - wrapper: a command that runs the program given to it.
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
            guard process.isRunning else { throw BenchmarkError("it ended: \(process.output)") }
            return process.output.contains("listening at") ? true : nil
        }
        startTime = ContinuousClock.now - start
        self.process = process
    }

    /// Ends it as a service manager does, and waits until it is gone, with the tool that watched
    /// it.
    func terminate() throws {
        process.send(signal: SIGTERM)
        try process.waitForExit(within: .seconds(60))
        try process.waitForEndOfOutput(within: .seconds(60))
    }

    /// Waits until it has done what its own start left to do.
    func waitUntilAsleep() throws { try process.waitUntilAsleep() }

    /// Lets time pass in which it has nothing to do.
    func idle(for time: Duration) throws { try process.watch(for: time) }

    /// The processor time that it has used, in all its threads.
    var processorTime: Duration { process.processorTime }

    /// A field of `/proc/PID/status` in KiB.
    func memory(_ field: String) -> Double { Double(process.memory(field)) }

    /// A guest whose driver has started the controller. It looks at events after an interrupt.
    ///
    /// - Parameter interrupters: how many of the controller's it uses.
    func boot(memory size: Int = 64 << 20, interrupters: Int = 1) throws -> GuestDriver {
        let memory = try GuestRAM(size: size)
        let machine = try Monitor.cloudHypervisor.start(
            memory: memory, wire: WireClient(path: socket))
        var options = GuestDriver.Options()
        options.waitsForInterrupts = true
        options.eventRings = Array(repeating: [1024], count: interrupters)
        let driver = GuestDriver(machine, options)
        try driver.start()
        return driver
    }

    /// Whether it has a backend of this name.
    static func offers(_ backend: String) -> Bool {
        let program = try? CompletedProgram([Server.binary, "backends", "--json"])
        return program?.output.contains("\"\(backend)\"") == true
    }
}

/// Makes a file of zeroes that takes no room.
func makeSparseFile(_ url: URL, count: Int) throws {
    _ = FileManager.default.createFile(atPath: url.path, contents: nil)
    let file = try FileHandle(forWritingTo: url)
    try file.truncate(atOffset: UInt64(count))
    try file.close()
}
