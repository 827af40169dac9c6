// SPDX-License-Identifier: Apache-2.0

public import BackendKit
internal import Logging
internal import Platform
public import USB

/// The backend `host`: a USB device of this host, passed through to the guest by libusb-1.0.
///
/// Its specification is a rule (``DeviceRule``), which selects one device at a time. The device is
/// detached from the host's drivers, and released to them at the end. When it is disconnected from
/// the host, it is disconnected from the guest. A rule by port or ids then waits for a matching
/// device, and attaches that as a new one.
public final class HostBackend: DeviceBackend {
    public static let scheme = "host"
    public static let summary = "a USB device of this host, passed through to the guest"
    public static let parameters = [
        Parameter("bus", value: "N", summary: "the bus it is on, as lsusb says"),
        Parameter(
            "address", value: "N", summary: "its address on the bus, which lsusb calls 'Device'"),
        Parameter(
            "port", value: "BUS-PORT",
            summary: "or the port it is plugged into, such as 1-2.3; waits for a device there"),
        Parameter(
            "vendor", value: "ID", summary: "or its ids, such as 0x46f4; waits for such a device"),
        Parameter("product", value: "ID", summary: "the second of the ids"),
        Parameter(
            "serial", value: "TEXT", summary: "its serial number, to distinguish equal devices"),
    ]
    public static let example = "host:bus=1,address=4"
    public static let bareNames = [
        BareName("/dev/bus/usb/BUS/ADDRESS") { name in
            let prefix = "/dev/bus/usb/"
            guard name.hasPrefix(prefix) else { return nil }
            let parts = name.dropFirst(prefix.count).split(
                separator: "/", omittingEmptySubsequences: false)
            guard parts.count == 2, let bus = UInt8(parts[0]), let address = UInt8(parts[1]) else {
                return nil
            }
            return "host:bus=\(bus),address=\(address)"
        }
    ]

    // Members without `private` are also used by the extension that probes for devices.

    /// Attempts to open a new device without permission; udev may grant the permission later.
    static let accessAttempts = 10
    static let accessRetryDelay = Duration.milliseconds(200)

    let rule: DeviceRule
    let loop: any EventLoop
    let logger: Logger
    let services: HostUSBServices
    let context: LibUSBContext
    /// Reads names and opens devices.
    let jobs: SerialQueue
    var bus: (any USBBus)?
    /// The device that the rule has selected.
    var current: HostDeviceSession?
    /// Whether ``current`` is attached to the bus.
    var isAttached = false
    /// Former devices, until they are closed and disconnected.
    var closing: [HostDeviceSession] = []
    /// The timer after which a device may be selected again that was closed while still connected.
    var returnTimer: Watch?

    /// Whether a job of the prober runs.
    var isProbing = false
    /// Whether to probe again when that job has ended.
    var needsReprobe = false
    var openingAttempts = 0
    var probeTimer: Watch?

    /// Whether the loop is running, so that the backend must not block it.
    private let isServing: Bool
    /// The device node that a control client has opened, until the backend starts.
    private var received: ReceivedDescriptor?
    var startCompletion: ((BackendError?) -> Void)?

    public init(
        _ specification: DeviceSpecification, context environment: BackendContext
    ) throws(BackendError) {
        let loop = environment.loop
        rule = try DeviceRule(specification)
        self.loop = loop
        logger = environment.logger
        services = try environment.resources.resource { () throws(BackendError) in
            try HostUSBServices(loop: loop)
        }
        jobs = services.threads.makeQueue()
        do throws(LibUSBError) { context = try services.context() } catch {
            throw Diagnosis.noUSB(error)
        }
        isServing = environment.isServing
        if isServing {
            received = environment.descriptor
            return
        }
        if let descriptor = environment.descriptor?.take() {
            current = try adopt(descriptor)
            return
        }
        let present = context.devices().map { (node: $0, name: HostDeviceName($0)) }
        let matching = present.filter { rule.matches($0.name) }
        if matching.count > 1 { throw Diagnosis.ambiguous(rule, candidates: matching.map(\.name)) }
        if let (node, name) = matching.first {
            current = try makeSession(node, name, open(node, name))
        } else if case .address(let bus, let address) = rule {
            throw Diagnosis.noDevice(
                bus: bus, address: address,
                of: present.filter { !$0.node.isHub }.map(\.name))
        }
    }

    private func open(
        _ node: LibUSBDevice, _ name: HostDeviceName
    ) throws(BackendError) -> LibUSBHandle.Opened {
        do throws(OpeningError) {
            return try HostDeviceSession.open(node.opener, name: name)
        } catch {
            throw Diagnosis.cannotOpen(name, error)
        }
    }

    func makeSession(
        _ node: LibUSBDevice, _ name: HostDeviceName, _ opened: LibUSBHandle.Opened,
        received: ReceivedDescriptor? = nil
    ) throws(BackendError) -> HostDeviceSession {
        try HostDeviceSession(
            node, name: name, opened, received: received, context: context,
            jobs: services.threads.makeQueue(), loop: loop, logger: logger)
    }

    /// Adopts a device that another process has opened, if the rule matches it.
    private func adopt(_ descriptor: consuming OwnedDescriptor) throws(BackendError)
        -> HostDeviceSession
    {
        let number = descriptor.rawValue
        let received = ReceivedDescriptor(descriptor)
        let pointer: LibUSBHandle.Pointer
        do throws(LibUSBError) {
            pointer = try context.wrapper.wrap(number)
        } catch {
            throw Diagnosis.notANode(rule, error)
        }
        guard let node = context.device(of: pointer) else {
            pointer.close()
            throw Diagnosis.notANode(rule, .noDevice)
        }
        let name = HostDeviceName(node)
        return try adopt(node, name, pointer, ReceivedNode(number, path: name.node), received)
    }

    func adopt(
        _ node: LibUSBDevice, _ name: HostDeviceName, _ pointer: LibUSBHandle.Pointer,
        _ receivedNode: ReceivedNode, _ received: ReceivedDescriptor
    ) throws(BackendError) -> HostDeviceSession {
        do throws(BackendError) {
            guard rule.matches(name) else { throw Diagnosis.wrongNode(rule, name) }
            do throws(OpeningError) { try receivedNode.lock.get() } catch {
                throw Diagnosis.cannotOpen(name, error)
            }
        } catch {
            pointer.close()
            throw error
        }
        let opened = LibUSBHandle.Opened(
            pointer: pointer, longestRequest: receivedNode.longestRequest)
        return try makeSession(node, name, opened, received: received)
    }

    // MARK: - Start

    public func start(on bus: any USBBus) throws(BackendError) {
        if let current {
            do throws(BackendError) {
                try attach(current, to: bus, problems: current.claim())
            } catch {
                _ = current.shutDown()
                self.current = nil
                throw error
            }
        }
        observeDevices(for: bus)
        if rule.isPersistent && current == nil {
            logWaiting()
            probe()
        }
    }

    public func start(on bus: any USBBus, completion: @escaping (BackendError?) -> Void) {
        guard isServing else {
            do throws(BackendError) {
                try start(on: bus)
                completion(nil)
            } catch {
                completion(error)
            }
            return
        }
        startCompletion = completion
        observeDevices(for: bus)
        if let descriptor = received?.take() { adoptLater(descriptor) } else { probe() }
    }

    private func observeDevices(for bus: any USBBus) {
        self.bus = bus
        context.addObserver(self)
        if rule.isPersistent && !SystemFiles.hasUdev {
            logger.warning("\(rule): \(Diagnosis.noHotplug)")
        }
    }

    private func logWaiting() {
        logger.notice("\(rule) matches no device yet: waiting for one to be plugged in")
    }

    func completeStart() { startCompletion.take()?(nil) }

    /// Completes the start with an error, or logs the error if the start has completed.
    ///
    /// - Parameter session: an opened device, which is closed before the start completes, because
    ///   the client may try again at once.
    func fail(_ error: BackendError, closing session: HostDeviceSession? = nil) {
        let completion = startCompletion.take()
        if completion == nil {
            logger.error("\(rule): \(error)")
        } else {
            detach()
        }
        guard let session else {
            completion?(error)
            return
        }
        keepUntilClosed(session)
        session.shutDown { _ in completion?(error) }
    }

    /// Completes the start when the rule matches no device, with an error if the rule is an
    /// address.
    func completeStartWithoutDevice() {
        guard startCompletion != nil else { return }
        if case .address(let bus, let address) = rule {
            fail(
                Diagnosis.noDevice(
                    bus: bus, address: address,
                    of: context.devices().filter { !$0.isHub }
                        .map { HostDeviceName(withoutStrings: $0) }))
        } else {
            logWaiting()
            completeStart()
        }
    }

    // MARK: - Stop

    /// Detaches the device from the bus, and selects no other.
    private func detach() {
        probeTimer = nil
        returnTimer = nil
        context.removeObserver(self)
        if let current, isAttached { bus?.detach(current.device) }
        isAttached = false
        bus = nil
        if let current { keepUntilClosed(current) }
        current = nil
    }

    public func stop() {
        detach()
        waitForProber()
        for session in closing where !session.shutDown() {
            logger.warning("\(timeoutError([session]))")
        }
        closing = []
    }

    /// Waits for the prober's job, which may open a device of libusb's context. If the job times
    /// out, the context and the threads stay allocated.
    private func waitForProber() {
        guard isProbing else { return }
        isProbing = false
        let hasEnded = Locked(false)
        jobs.run {
            hasEnded.withLock { $0 = true }
        } completion: {
        }
        let deadline = loop.now + HostDeviceSession.shutDownTimeout
        while !hasEnded.withLock({ $0 }) {
            guard loop.now < deadline else {
                _ = unsafe Unmanaged.passRetained(services)
                _ = unsafe Unmanaged.passRetained(context)
                logger.warning("\(rule): a device does not answer; opening it was abandoned")
                return
            }
            context.handleEvents(waiting: .milliseconds(10))
            jobs.checkForStall()
        }
    }

    public func stop(completion: @escaping (BackendError?) -> Void) {
        detach()
        var late: [HostDeviceSession] = []
        var count = closing.count + 1
        // The completions retain this backend.
        let end = { [self] in
            count -= 1
            guard count == 0 else { return }
            closing = []
            completion(late.isEmpty ? nil : timeoutError(late))
        }
        for session in closing {
            session.shutDown { isInTime in
                if !isInTime { late.append(session) }
                end()
            }
        }
        if isProbing {
            jobs.run {
            } completion: {
                end()
            }
        } else {
            end()
        }
    }

    private func timeoutError(_ sessions: [HostDeviceSession]) -> BackendError {
        let names = sessions.map(\.name.displayName).joined(separator: ", ")
        return BackendError(
            "\(names) did not answer in time; the host's drivers may be missing")
    }

    /// Closes the device of a backend that was never started, or whose start failed.
    deinit {
        waitForProber()
        if let current, !current.shutDown() { logger.warning("\(timeoutError([current]))") }
    }
}
