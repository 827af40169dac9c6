// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import GuestKit
import RemoteGuest
import VFIOClient

/// Why a benchmark could not be run.
struct BenchmarkError: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}

/// The built program while it serves, alone or under a tool that watches it.
final class RunningProgram {
    private let process = Process()
    private let log: URL
    let socket: String
    /// From its start until it listens.
    let startTime: Duration

    /// - Parameters:
    ///   - devices: what it serves.
    ///   - wrapper: a command that runs the program given to it.
    init(
        devices: [String], wrapper: [String] = [], binary: String = Settings.binary, folder: URL
    ) throws {
        let name = String(UInt32.random(in: 0 ... .max), radix: 36)
        socket = folder.appending(path: "\(name).socket").path
        log = folder.appending(path: "\(name).log")
        _ = FileManager.default.createFile(atPath: log.path, contents: nil)
        let output = try FileHandle(forWritingTo: log)
        // It dies with this program, however that ends.
        process.executableURL = URL(filePath: "/usr/bin/env")
        process.arguments =
            ["setpriv", "--pdeathsig", "KILL", "--"] + wrapper
            + [binary, "--socket-path", socket] + devices.flatMap { ["--device", $0] }
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = output
        process.standardError = output
        let start = ContinuousClock.now
        try process.run()
        while !Self.listens(at: socket) {
            guard process.isRunning, ContinuousClock.now < start + .seconds(60) else {
                throw BenchmarkError("\(binary) does not come up: \(Self.text(of: log))")
            }
            usleep(200)
        }
        startTime = ContinuousClock.now - start
    }

    deinit {
        if process.isRunning { kill(process.processIdentifier, SIGKILL) }
        process.waitUntilExit()
    }

    var isRunning: Bool { process.isRunning }

    /// Ends it as a service manager does, and waits until it is gone.
    func terminate() {
        kill(process.processIdentifier, SIGTERM)
        process.waitUntilExit()
    }

    /// The processor time that it has used, all threads together.
    var processorTime: Duration {
        var clock: clockid_t = 0
        var time = timespec()
        guard clock_getcpuclockid(process.processIdentifier, &clock) == 0,
            clock_gettime(clock, &time) == 0
        else { return .zero }
        return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
    }

    /// A field of /proc/PID/status in KiB.
    func memory(_ field: String) -> Double {
        let status = Self.text(of: URL(filePath: "/proc/\(process.processIdentifier)/status"))
        let line = status.split(separator: "\n").first { $0.hasPrefix("\(field):") }
        return line?.split(separator: " ").compactMap { Double($0) }.first ?? 0
    }

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
        let process = Process()
        let pipe = Pipe()
        process.executableURL = URL(filePath: Settings.binary)
        process.arguments = ["backends", "--json"]
        process.standardOutput = pipe
        guard (try? process.run()) != nil else { return false }
        let text = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return text.contains("\"\(backend)\"")
    }

    /// A connection would be a client of it, so the kernel is asked instead.
    private static func listens(at socket: String) -> Bool {
        text(of: URL(filePath: "/proc/net/unix")).split(separator: "\n").contains {
            $0.hasSuffix(" \(socket)") && $0.contains(" 00010000 ")
        }
    }

    private static func text(of url: URL) -> String {
        (try? String(contentsOf: url, encoding: .utf8)) ?? ""
    }
}

/// Runs a short program that must succeed.
func runProgram(_ command: String...) throws {
    let process = Process()
    process.executableURL = URL(filePath: "/usr/bin/env")
    process.arguments = command
    try process.run()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else {
        throw BenchmarkError("\(command[0]) failed with \(process.terminationStatus)")
    }
}

/// Makes a file of zeroes that takes no room.
func makeSparseFile(_ url: URL, count: Int) throws {
    _ = FileManager.default.createFile(atPath: url.path, contents: nil)
    let file = try FileHandle(forWritingTo: url)
    try file.truncate(atOffset: UInt64(count))
    try file.close()
}
