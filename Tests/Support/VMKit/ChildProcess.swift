// SPDX-License-Identifier: Apache-2.0

import Foundation
public import Glibc
import Platform

/// A program started by a test, which never outlives it.
///
/// The kernel is asked to kill the child when the thread that started it ends, so even a test run
/// that is killed with SIGKILL leaves nothing behind. That thread is one of our own that never
/// ends: the test runner's threads come and go.
public final class ChildProcess: @unchecked Sendable {
    public let name: String
    /// Where both of the program's output streams go.
    public let outputPath: String
    public let processID: pid_t

    private let state = Locked<Int32?>(nil)

    public init(_ arguments: [String], environment: [String: String] = [:], output: String) throws {
        name = arguments.first.map { ($0 as NSString).lastPathComponent } ?? "nothing"
        outputPath = output
        let command = ["/usr/bin/env", "setpriv", "--pdeathsig", "KILL", "--"] + arguments
        let variables = ProcessInfo.processInfo.environment
            .merging(environment) { $1 }
            .map { "\($0)=\($1)" }
        let result = Keeper.shared.perform { spawn(command, variables, output: output) }
        guard case .success(let processID) = result else {
            throw VMError("could not start \(name)", detail: "\(result)")
        }
        self.processID = processID
    }

    deinit { kill() }

    /// What the program wrote so far.
    public var output: String {
        String(decoding: FileManager.default.contents(atPath: outputPath) ?? Data(), as: UTF8.self)
    }

    public var isRunning: Bool { exitStatus == nil }

    /// The status it exited with, or the negated signal that ended it; nil while it runs.
    public var exitStatus: Int32? {
        state.withLock { known in
            if known != nil { return known }
            var status: Int32 = 0
            guard waitpid(processID, &status, WNOHANG) == processID else { return nil }
            known = status & 0x7f == 0 ? (status >> 8) & 0xff : -(status & 0x7f)
            return known
        }
    }

    public func send(signal: Int32) {
        if isRunning { Glibc.kill(processID, signal) }
    }

    /// Ends it at once. It is gone when this returns.
    public func kill() {
        send(signal: SIGKILL)
        _ = try? waitForExit(within: .seconds(30))
    }

    @discardableResult
    public func waitForExit(within limit: Duration) throws -> Int32 {
        try Deadline(limit).wait(for: "\(name) to exit") { exitStatus }
    }
}

/// Runs closures on one thread that lives as long as the process, because a child's life is bound
/// to the thread that started it.
private final class Keeper: @unchecked Sendable {
    static let shared = Keeper()

    private let jobs = Locked<[@Sendable () -> Void]>([])
    private let available = DispatchSemaphore(value: 0)

    private init() {
        Thread.detachNewThread { [self] in
            while true {
                available.wait()
                jobs.withLock { $0.removeFirst() }()
            }
        }
    }

    func perform<Value: Sendable>(_ body: @escaping @Sendable () -> Value) -> Value {
        let done = DispatchSemaphore(value: 0)
        let result = Locked<Value?>(nil)
        jobs.withLock {
            $0.append {
                let value = body()
                result.withLock { $0 = value }
                done.signal()
            }
        }
        available.signal()
        while true {
            done.wait()
            if let value = result.withLock({ $0 }) { return value }
        }
    }
}

/// Starts a program with no signal blocked or ignored, no input, and its output in a file.
private func spawn(
    _ command: [String], _ environment: [String], output: String
) -> Result<pid_t, VMError> {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_TRUNC, 0o644)
    posix_spawn_file_actions_adddup2(&actions, 1, 2)

    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    var all = sigset_t()
    sigemptyset(&none)
    sigfillset(&all)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setsigdefault(&attributes, &all)
    posix_spawnattr_setflags(
        &attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))

    var arguments = command.map { strdup($0) } + [nil]
    var variables = environment.map { strdup($0) } + [nil]
    defer { (arguments + variables).forEach { free($0) } }
    var processID: pid_t = 0
    let status = posix_spawnp(
        &processID, command[0], &actions, &attributes, &arguments, &variables)
    return status == 0
        ? .success(processID) : .failure(VMError(String(cString: strerror(status))))
}
