// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Foundation
import GuestKit
import Platform
import USB

/// A backend that records its calls. With `slow`, the test completes them.
final class FakeBackend: OperableBackend {
    static let scheme = "fake"
    static let summary = "for tests"
    static let example = "fake"
    static let parameters = [
        Parameter("file", value: "PATH", summary: "nothing"),
        Parameter("speed", value: "high|super", summary: "of the device"),
        Parameter("portless", value: nil, summary: "no device yet"),
        Parameter("late", value: nil, summary: "is attached when the test says so"),
        Parameter("slow", value: nil, summary: "answers when the test says so"),
        Parameter("broken", value: nil, summary: "cannot be opened"),
        Parameter("full", value: nil, summary: "cannot write what it has accepted"),
    ]

    private(set) var device: TestDevice
    let passed: ReceivedDescriptor?
    private(set) var calls: [OperationCall] = []
    private(set) var stopCount = 0
    /// The completions that wait for the test, oldest first.
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
        FakeBackendRegistry.shared.add(self, context.loop)
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

    /// Disconnects the device and attaches another one.
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

/// A backend without operations.
final class FixedBackend: DeviceBackend {
    static let scheme = "fixed"
    static let summary = "for tests"
    static let example = "fixed"
    static let parameters: [Parameter] = []

    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {}
    func start(on bus: any USBBus) throws(BackendError) {}
    func stop() {}
}

/// The fake backends by their event loop, because tests run at the same time.
final class FakeBackendRegistry: @unchecked Sendable {
    private struct Entry {
        weak var backend: FakeBackend?
        let loop: ObjectIdentifier
    }

    static let shared = FakeBackendRegistry()
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
