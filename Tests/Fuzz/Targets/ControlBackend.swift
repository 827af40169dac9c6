// SPDX-License-Identifier: Apache-2.0

import BackendKit
import GuestKit
import Loopback
import MassStorage
import Platform
import SystemPackage
import USB

/// A simulated loop that keeps the backends made for it.
final class ControlLoop: EventLoop {
    private let inner = SimulatedLoop()
    private(set) var backends: [ControlBackend] = []

    var now: Duration { inner.now }

    func watch(
        _ descriptor: borrowing OwnedDescriptor, for events: Readiness,
        _ body: @escaping (Readiness) -> Void
    ) throws(Errno) -> Watch { try inner.watch(descriptor, for: events, body) }

    func schedule(at deadline: Duration, _ body: @escaping () -> Void) -> Watch {
        inner.schedule(at: deadline, body)
    }

    func turn() -> Bool { inner.turn() }

    func pass(_ duration: Duration) { inner.advance(to: inner.now + duration) }

    func add(_ backend: ControlBackend) { backends.append(backend) }

    /// Releases the backends, which refer to the loop.
    func forget() { backends = [] }
}

/// A backend whose specification decides how it behaves: broken, without a port, slow, lossy.
final class ControlBackend: OperableBackend {
    static let scheme = "fake"
    static let summary = "a target of control requests"
    static let example = "fake:slow"
    static let parameters = [
        Parameter("file", value: "PATH", summary: "nothing"),
        Parameter("portless", value: nil, summary: "no device"),
        Parameter("slow", value: nil, summary: "answers later"),
        Parameter("broken", value: nil, summary: "cannot be opened"),
        Parameter("lossy", value: nil, summary: "fails every operation"),
    ]

    private let device = TestDevice()
    private let isSlow: Bool
    private let isLossy: Bool
    private let hasPort: Bool
    private weak var bus: (any USBBus)?
    /// The last descriptor that came with a request.
    private var passed: ReceivedDescriptor?
    private var waiting: [(BackendError?) -> Void] = []
    private(set) var stopCount = 0

    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {
        if try specification.flag("broken") == true { throw BackendError("it is broken") }
        isSlow = try specification.flag("slow") ?? false
        isLossy = try specification.flag("lossy") ?? false
        hasPort = try specification.flag("portless") != true
        passed = context.descriptor
        (context.loop as? ControlLoop)?.add(self)
    }

    func start(on bus: any USBBus) throws(BackendError) {
        guard hasPort else { return }
        do throws(AttachError) { try bus.attach(device) } catch {
            throw BackendError("no port: \(error)")
        }
        self.bus = bus
    }

    func stop() {
        stopCount += 1
        bus?.detach(device)
        passed = nil
    }

    func stop(completion: @escaping (BackendError?) -> Void) {
        stop()
        complete(completion)
    }

    static let operations =
        BackendCatalog.operations(of: StorageBackend.self)
        + BackendCatalog.operations(of: LoopbackBackend.self) + [
            BackendOperation(
                "tune", summary: "Every type of argument.",
                arguments: [
                    BackendOperation.Argument("channel", .integer(0...9), summary: "A number."),
                    BackendOperation.Argument(
                        "band", .choice(["am", "fm"]), isRequired: false, summary: "A word."),
                    BackendOperation.Argument(
                        "note", .text(maximumLength: 8), isRequired: false, summary: "A text."),
                    BackendOperation.Argument(
                        "file", .path(opening: .read), isRequired: false, summary: "A path."),
                ])
        ]

    func execute(_ call: OperationCall, completion: @escaping (BackendError?) -> Void) {
        if let descriptor = call.descriptor { passed = descriptor }
        complete(completion)
    }

    /// Disconnects the device.
    func disconnect() { device.disconnect() }

    private func complete(_ completion: @escaping (BackendError?) -> Void) {
        if isSlow {
            waiting.append(completion)
        } else {
            completion(isLossy ? BackendError("lost") : nil)
        }
    }

    /// Completes the oldest call that waits.
    func finish() {
        guard !waiting.isEmpty else { return }
        waiting.removeFirst()(isLossy ? BackendError("lost") : nil)
    }
}
