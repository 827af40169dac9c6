// SPDX-License-Identifier: Apache-2.0

import Foundation
public import Glibc
import Platform
import TestKit

/// A program started by a test, which never outlives the test run.
///
/// The kernel kills the child when the thread that started it ends (`PR_SET_PDEATHSIG`), so even a
/// test run ended by SIGKILL leaves no process. ``Spawner`` is that thread, as threads of the test
/// runner are short-lived.
public final class ChildProcess: @unchecked Sendable {
    public let name: String
    public let processID: pid_t

    private let monitor: Monitor

    /// Starts a program.
    ///
    /// - Parameters:
    ///   - arguments: the program and its arguments.
    ///   - environment: variables beside those of the test, without ``unwantedVariables``.
    ///   - folder: the program's working directory; the test's own if `nil`.
    ///   - descriptor: a descriptor that the program inherits as number 3. It inherits no other.
    ///   - output: a file that gets a copy of ``output``.
    ///   - errors: a file for the standard error stream, which otherwise joins the output.
    public init(
        _ arguments: [String], environment: [String: String] = [:], folder: String? = nil,
        descriptor: CInt? = nil, output: String? = nil, errors: String? = nil
    ) throws {
        name = arguments.first.map { ($0 as NSString).lastPathComponent } ?? "nothing"
        let inherited = ProcessInfo.processInfo.environment.filter {
            !Self.unwantedVariables.contains($0.key)
        }
        let spawn = Spawn(
            command: ["/usr/bin/env"] + (folder.map { ["--chdir", $0] } ?? [])
                + ["setpriv", "--pdeathsig", "KILL", "--"] + arguments,
            environment: inherited.merging(environment) { $1 }.map { "\($0)=\($1)" },
            descriptor: descriptor, errors: errors)
        let result = Spawner.shared.run { spawn.start() }
        guard case .success(let (processID, readEnd)) = result else {
            throw VMError("could not start \(name)", detail: "\(result)")
        }
        self.processID = processID
        monitor = Monitor(processID, output: readEnd, copy: output)
    }

    deinit { kill() }

    /// Variables of the test's environment that programs obey and tests do not expect: the width of
    /// the terminal, and sockets that a service manager passed to the test runner.
    private static let unwantedVariables: Set = [
        "COLUMNS", "LINES", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET",
    ]

    /// The output so far.
    public var output: String { monitor.output }

    public var isRunning: Bool { exitStatus == nil }

    /// The exit status, or the negated signal that ended it; `nil` while it runs. ``output`` is
    /// complete by then.
    public var exitStatus: Int32? { monitor.exitStatus }

    public func send(signal: Int32) { monitor.send(signal) }

    /// Kills the program and waits for its exit.
    public func kill() {
        send(signal: SIGKILL)
        _ = try? waitForExit(within: .seconds(30))
    }

    // MARK: - Waiting

    /// Calls `answer` whenever the program has written or ended, until it returns a value.
    @discardableResult
    public func wait<Value>(
        for event: String, within limit: Duration, _ answer: () throws -> Value?
    ) throws -> Value {
        let deadline = Deadline(limit)
        while true {
            let seen = monitor.changes
            if let value = try answer() { return value }
            guard monitor.waitForChange(since: seen, before: deadline) else {
                throw VMError("timeout after \(limit): \(event)")
            }
        }
    }

    @discardableResult
    public func waitForExit(within limit: Duration) throws -> Int32 {
        try wait(for: "\(name) to exit", within: limit) { exitStatus }
    }

    /// Waits until the program's output is closed: the program and its descendants have ended.
    public func waitForEndOfOutput(within limit: Duration) throws {
        try wait(for: "the end of the output of \(name)", within: limit) {
            monitor.hasOutputEnded ? true : nil
        }
    }

    /// Waits for `time`; throws if the program ends before.
    public func watch(for time: Duration) throws {
        guard (try? waitForExit(within: time)) == nil else {
            throw VMError("\(name) exited unexpectedly", detail: output)
        }
    }

    /// Waits until the main thread sleeps and has used no processor time for 30 ms.
    public func waitUntilAsleep() throws {
        let deadline = Deadline(.seconds(10))
        var before: [Substring] = []
        while true {
            let stat = kernelFile("/proc/\(processID)/stat") ?? ""
            let fields = stat.split(separator: ")").last?.split(separator: " ") ?? []
            guard fields.count > 12 else { throw VMError("no state of \(name): \(stat)") }
            // The state, and the time in user and kernel mode in clock ticks.
            let now = [fields[0], fields[11], fields[12]]
            if now == before, now[0] == "S" { return }
            if deadline.hasPassed { throw VMError("\(name) does not sleep") }
            before = now
            try watch(for: .milliseconds(30))
        }
    }
}

extension ChildProcess {
    /// The processor time that all threads of the program have used.
    public var processorTime: Duration {
        var clock: clockid_t = 0
        var time = timespec()
        guard clock_getcpuclockid(processID, &clock) == 0, clock_gettime(clock, &time) == 0
        else { return .zero }
        return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
    }

    /// A field of `/proc/PID/status` that counts KiB, such as `RssAnon`; 0 if it is absent.
    public func memory(_ field: String) -> Int {
        let status = kernelFile("/proc/\(processID)/status")
        let line = status?.split(separator: "\n").first { $0.hasPrefix("\(field):") }
        return line?.split(separator: " ").lazy.compactMap { Int($0) }.first ?? 0
    }
}

/// The output and the exit of a child, each awaited by a thread.
private final class Monitor: @unchecked Sendable {
    private let processID: pid_t
    private let readEnd: Int32
    private let copy: Int32
    private let condition = NSCondition()
    private var written: [UInt8] = []
    private var status: Int32?
    private var isAtEnd = false
    private var count = 0

    init(_ processID: pid_t, output readEnd: Int32, copy path: String?) {
        self.processID = processID
        self.readEnd = readEnd
        copy = path.map { open($0, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644) } ?? -1
        _ = fcntl(readEnd, F_SETFL, O_NONBLOCK)
        Thread.detachNewThread { [self] in read() }
        Thread.detachNewThread { [self] in awaitExit() }
    }

    deinit {
        close(readEnd)
        if copy >= 0 { close(copy) }
    }

    private func locked<Value>(_ body: () -> Value) -> Value {
        condition.lock()
        defer { condition.unlock() }
        return body()
    }

    var output: String { locked { String(decoding: written, as: UTF8.self) } }
    var exitStatus: Int32? { locked { status } }
    var hasOutputEnded: Bool { locked { isAtEnd } }
    /// A counter of changes.
    var changes: Int { locked { count } }

    func send(_ signal: Int32) {
        // Until it is reaped, the process ID is not reused.
        locked { if status == nil { _ = Glibc.kill(processID, signal) } }
    }

    func waitForChange(since seen: Int, before deadline: Deadline) -> Bool {
        let end = Date(timeIntervalSinceNow: Double(deadline.milliseconds) / 1000)
        return locked {
            while count == seen {
                guard condition.wait(until: end) else { return count != seen }
            }
            return true
        }
    }

    private func change(_ body: () -> Void) {
        locked {
            body()
            count += 1
            condition.broadcast()
        }
    }

    private func read() {
        while !hasOutputEnded {
            var item = pollfd(fd: readEnd, events: Int16(POLLIN), revents: 0)
            _ = poll(&item, 1, -1)
            take()
        }
    }

    /// Reads all output that is available.
    private func take() {
        change {
            var chunk = [UInt8](repeating: 0, count: 65536)
            while !isAtEnd {
                let size = Glibc.read(readEnd, &chunk, chunk.count)
                if size < 0 { return }
                isAtEnd = size == 0
                written += chunk[..<size]
                if copy >= 0 { _ = Glibc.write(copy, chunk, size) }
            }
        }
    }

    private func awaitExit() {
        var information = siginfo_t()
        while waitid(P_PID, id_t(processID), &information, WEXITED | WNOWAIT) != 0, errno == EINTR {
        }
        take()
        change {
            var raw: Int32 = 0
            waitpid(processID, &raw, 0)
            status = raw & 0x7f == 0 ? (raw >> 8) & 0xff : -(raw & 0x7f)
        }
    }
}

/// Runs closures on a thread that exists as long as the process, because a child is killed with the
/// thread that started it.
private final class Spawner: @unchecked Sendable {
    static let shared = Spawner()

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

    func run<Value: Sendable>(_ body: @escaping @Sendable () -> Value) -> Value {
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

/// The start of a program with no signal blocked or ignored, without input, and with one pipe for
/// its output.
private struct Spawn: Sendable {
    let command: [String]
    let environment: [String]
    /// The descriptor that becomes number 3.
    let descriptor: CInt?
    /// The file for the standard error stream.
    let errors: String?

    func start() -> Result<(pid_t, readEnd: Int32), VMError> {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { return .failure(VMError(String(cString: strerror(errno)))) }
        let (readEnd, output) = (ends[0], ends[1])
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        defer { close(output) }

        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        addActions(to: &actions, output: output)

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
        guard status == 0 else {
            close(readEnd)
            return .failure(VMError(String(cString: strerror(status))))
        }
        return .success((processID, readEnd))
    }

    private func addActions(to actions: inout posix_spawn_file_actions_t, output: CInt) {
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, output, 1)
        if let errors {
            posix_spawn_file_actions_addopen(
                &actions, 2, errors, O_WRONLY | O_CREAT | O_TRUNC, 0o644)
        } else {
            posix_spawn_file_actions_adddup2(&actions, output, 2)
        }
        if let descriptor { posix_spawn_file_actions_adddup2(&actions, descriptor, 3) }
        // Closes descriptors of other tests, also those that are not close-on-exec.
        _ = Self.addCloseFrom?(&actions, descriptor == nil ? 3 : 4)
    }

    /// `posix_spawn_file_actions_addclosefrom_np`, which the module of the C library does not
    /// export; `nil` before glibc 2.34.
    private static let addCloseFrom = dlsym(nil, "posix_spawn_file_actions_addclosefrom_np").map {
        unsafeBitCast(
            $0,
            to: (@convention(c) (UnsafeMutablePointer<posix_spawn_file_actions_t>, CInt) -> CInt)
                .self)
    }
}
