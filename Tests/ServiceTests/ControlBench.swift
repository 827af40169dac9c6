// SPDX-License-Identifier: Apache-2.0

import BackendKit
import ExampleBackend
import Foundation
import GuestKit
import Logging
import Platform
import Service
import SystemPackage
import TestKit
import USB
import VFIOClient

/// A server with a control socket, in the thread of the test. The time of the control socket is simulated.
final class ControlBench {
    let bench: Bench
    let devices: DeviceTable
    let control: ControlServer
    private let loop = SimulatedLoop()
    private let folder: TemporaryFolder
    private var path: String { folder.file("control") }

    init() throws {
        bench = try Bench()
        folder = try TemporaryFolder()
        devices = DeviceTable(
            catalog: BackendCatalog(FakeBackend.self, FixedBackend.self, DiceBackend.self),
            server: bench.server, loop: loop, logger: .silent)
        control = try ControlServer(
            listener: ListeningSocket(
                bindingTo: folder.file("control"), permissions: .ownerReadWrite),
            server: bench.server, devices: devices, loop: loop, logger: .silent,
            timeout: Self.timeout)
    }

    /// How long a client may take to end a line or to read an answer.
    static let timeout = Duration.seconds(10)

    /// Runs what is ready on both loops, then returns although nothing more happens.
    func turn() throws {
        let now = bench.loop.now
        try bench.server.turn(until: loop.turn() ? now : now + .milliseconds(2))
    }

    /// Turns until a condition holds, or the time is over.
    func turn(until condition: () throws -> Bool) throws -> Bool {
        try holdsEventually {
            if try condition() { return true }
            try turn()
            return false
        }
    }

    /// Lets ``timeout`` pass once there is nothing left to do.
    func passTimeout() {
        while loop.turn() {}
        loop.advance(to: loop.now + Self.timeout)
    }

    /// The sockets of the kernel that are bound to the path: that of the listener, and one for each
    /// connection that was accepted and is open.
    func openSockets() -> Int {
        let table = kernelFile("/proc/net/unix") ?? ""
        let inodes = table.split(separator: "\n").filter { $0.hasSuffix(" \(path)") }
            .map { $0.split(separator: " ").dropLast().last }
        return Set(inodes).count
    }

    /// Who may connect.
    func permissions() throws -> Int {
        let attributes = try FileManager.default.attributesOfItem(atPath: path)
        return attributes[.posixPermissions] as? Int ?? -1
    }

    func client() throws -> ControlTestClient { ControlTestClient(try connect()) }

    func connect() throws -> WireClient {
        let wire = try WireClient(path: path)
        wire.whileWaiting = { [unowned self] in try turn() }
        return wire
    }

    /// The backends made so far, oldest first, as far as they still live.
    var backends: [FakeBackend] { Registry.shared.backends(of: loop) }
}

/// A client that asks in lines and takes answers apart.
final class ControlTestClient {
    let wire: WireClient
    private var input: [UInt8] = []

    init(_ wire: WireClient) { self.wire = wire }

    func send(_ line: String, descriptors: [CInt] = []) throws {
        try wire.send(Array("\(line)\n".utf8), descriptors: descriptors)
    }

    func answer() throws -> ControlAnswer {
        while true {
            if let end = input.firstIndex(of: UInt8(ascii: "\n")) {
                let line = Array(input[..<end])
                input.removeFirst(end + 1)
                guard let answer = ControlAnswer(line: line) else {
                    throw WireClient.Failure("no answer: \(String(decoding: line, as: UTF8.self))")
                }
                return answer
            }
            let more = try wire.receiveOnce(upTo: 65536)
            if more.isEmpty { throw WireClient.Failure("the server closed the connection") }
            input += more
        }
    }

    @discardableResult
    func ask(_ line: String, descriptors: [CInt] = []) throws -> ControlAnswer {
        try send(line, descriptors: descriptors)
        return try answer()
    }

    func list() throws -> [ControlDevice] { try ask(#"{"request":"list"}"#).devices ?? [] }
}

/// Backends by the loop that they run on, so that tests at the same time do not mix them up.
private final class Registry: @unchecked Sendable {
    private struct Entry {
        weak var backend: FakeBackend?
        let loop: ObjectIdentifier
    }

    static let shared = Registry()
    private let lock = NSLock()
    private var entries: [Entry] = []

    func add(_ backend: FakeBackend, _ loop: any EventLoop) {
        lock.withLock { entries.append(Entry(backend: backend, loop: ObjectIdentifier(loop))) }
    }

    func backends(of loop: any EventLoop) -> [FakeBackend] {
        lock.withLock {
            entries.compactMap { $0.loop == ObjectIdentifier(loop) ? $0.backend : nil }
        }
    }
}

/// A backend that tells what it was asked and, if it is slow, waits with its answers for the test.
final class FakeBackend: OperableBackend {
    static let scheme = "fake"
    static let summary = "for tests"
    static let example = "fake"
    static let parameters = [
        Parameter("file", value: "PATH", summary: "nothing"),
        Parameter("speed", value: "high|super", summary: "of the device"),
        Parameter("portless", value: nil, summary: "no device yet"),
        Parameter("late", value: nil, summary: "is plugged in when the test says so"),
        Parameter("slow", value: nil, summary: "answers when the test says so"),
        Parameter("broken", value: nil, summary: "cannot be opened"),
        Parameter("full", value: nil, summary: "cannot write what it has accepted"),
    ]

    private(set) var device: TestDevice
    let passed: ReceivedDescriptor?
    private(set) var calls: [OperationCall] = []
    private(set) var stopCount = 0
    /// What waits for the test, with what went wrong.
    private(set) var waiting: [(BackendError?) -> Void] = []
    private let isSlow: Bool
    private let isLate: Bool
    private let isFull: Bool
    let isServing: Bool
    private let hasPort: Bool
    private weak var bus: (any USBBus)?

    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {
        if try specification.flag("broken") == true { throw BackendError("it is broken") }
        isFull = try specification.flag("full") ?? false
        isLate = try specification.flag("late") ?? false
        isServing = context.isServing
        isSlow = try specification.flag("slow") ?? false
        hasPort = try specification.flag("portless") != true
        device = TestDevice(try specification.value(of: "speed") == "super" ? .superSpeed : .high)
        passed = context.descriptor
        Registry.shared.add(self, context.loop)
    }

    func start(on bus: any USBBus) throws(BackendError) {
        guard hasPort else { return }
        do throws(AttachError) { try bus.attach(device) } catch {
            throw BackendError("no port: \(error)")
        }
        self.bus = bus
    }

    func start(on bus: any USBBus, completion: @escaping (BackendError?) -> Void) {
        func start() -> BackendError? {
            do throws(BackendError) { try self.start(on: bus) } catch { return error }
            return nil
        }
        if isLate {
            waiting.append { completion($0 ?? start()) }
        } else {
            completion(start())
        }
    }

    /// The device leaves by itself and another one comes.
    func replug() throws(AttachError) {
        device.port?.disconnect()
        device = TestDevice(device.speed)
        try bus?.attach(device)
    }

    func stop() throws(BackendError) {
        detach()
        if isFull { throw BackendError("the disk is full") }
    }

    func stop(completion: @escaping (BackendError?) -> Void) {
        detach()
        complete(completion)
    }

    private func detach() {
        stopCount += 1
        bus?.detach(device)
    }

    static let operations = [
        BackendOperation(
            "insert", summary: "For tests.",
            arguments: [
                BackendOperation.Argument("spec", .specification, summary: "A medium."),
                BackendOperation.Argument("force", .flag, summary: "Or not."),
            ], absence: "has no medium"),
        BackendOperation(
            "eject", summary: "For tests.",
            arguments: [BackendOperation.Argument("force", .flag, summary: "Or not.")],
            absence: "has no medium"),
        BackendOperation(
            "faults", summary: "For tests.",
            arguments: [BackendOperation.Argument("rules", .text(), summary: "Rules.")],
            absence: "makes no faults on demand"),
        BackendOperation(
            "tune", summary: "For tests.",
            arguments: [
                BackendOperation.Argument("channel", .integer(-1...99), summary: "A number."),
                BackendOperation.Argument(
                    "band", .choice(["am", "fm"]), isRequired: false, summary: "A word."),
                BackendOperation.Argument(
                    "note", .text(maximumLength: 8), isRequired: false, summary: "Text."),
                BackendOperation.Argument(
                    "file", .path(opening: .read), isRequired: false, summary: "A path."),
            ]),
        BackendOperation(
            "store", summary: "For tests.",
            arguments: [BackendOperation.Argument("file", .path(), summary: "A path.")]),
    ]

    func execute(_ call: OperationCall, completion: @escaping (BackendError?) -> Void) {
        calls.append(call)
        complete(completion)
    }

    private func complete(_ completion: @escaping (BackendError?) -> Void) {
        if isSlow { waiting.append(completion) } else { completion(nil) }
    }

    /// Completes the oldest call that waits.
    func finish(_ error: BackendError? = nil) { waiting.removeFirst()(error) }
}

/// A backend that cannot be changed.
final class FixedBackend: DeviceBackend {
    static let scheme = "fixed"
    static let summary = "for tests"
    static let example = "fixed"
    static let parameters: [Parameter] = []

    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {}
    func start(on bus: any USBBus) throws(BackendError) {}
    func stop() {}
}
