// SPDX-License-Identifier: Apache-2.0

public import BackendKit
internal import Logging
internal import Platform
public import USB

/// The backend `host`: a USB device of this host, passed through to the guest by libusb-1.0.
///
/// What is given is a rule (``DeviceRule``), and the rule follows one device at a time. The device is
/// taken from the host's drivers and given back to them at the program's end. When it leaves, the
/// guest sees it unplugged; a rule that is not about an address then waits for a device that it
/// means and plugs that in anew.
public final class HostBackend: DeviceBackend {
    public static let scheme = "host"
    public static let summary = "a USB device of this host, passed through to the guest"
    public static let parameters = [
        Parameter("bus", value: "N", summary: "the bus it is on, as lsusb says"),
        Parameter(
            "address", value: "N", summary: "its address on the bus, which lsusb calls 'Device'"),
        Parameter(
            "port", value: "BUS-PORT",
            summary: "or where it is plugged in, such as 1-2.3; waits for a device there"),
        Parameter("vendor", value: "ID", summary: "or the ids that it has, such as 0x46f4; waits"),
        Parameter("product", value: "ID", summary: "for such a device"),
        Parameter("serial", value: "TEXT", summary: "its serial number, to tell equal ones apart"),
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

    // What is not private is for the extension that follows devices.

    /// How often a device that just came is tried again while permission is missing, which udev gives
    /// in its own time.
    static let patience = 10
    static let patienceStep = Duration.milliseconds(200)

    let rule: DeviceRule
    let loop: any EventLoop
    let logger: Logger
    let context: LibUSBContext
    /// For what has to be known of a device before it is opened.
    let lookout: Worker
    var bus: (any USBBus)?
    /// The device that the rule follows now.
    var current: HostDeviceSession?
    /// Whether ``current`` is plugged in, and not only about to be.
    var isAttached = false
    /// Devices that are not followed any more, until they are closed and libusb does not have them.
    var leaving: [HostDeviceSession] = []
    /// Until one of them may be taken anew.
    var returning: Watch?

    /// The lookout is at work for this.
    var isLooking = false
    var looksAgain = false
    var attempts = 0
    var retry: Watch?

    /// Nothing may be waited for: what is named is opened when the backend starts.
    private let isServing: Bool
    /// What came along, until then.
    private var passed: ReceivedDescriptor?
    /// Who waits to hear whether the start succeeded.
    var starting: ((BackendError?) -> Void)?

    public init(
        _ specification: DeviceSpecification, context environment: BackendContext
    ) throws(BackendError) {
        rule = try DeviceRule(specification)
        loop = environment.loop
        logger = environment.logger
        do {
            lookout = try Worker(name: "host", loop: loop)
        } catch {
            throw BackendError("cannot start a thread for \(rule): \(error)")
        }
        do throws(LibUSBError) {
            context = try LibUSBContext(loop: loop)
        } catch {
            throw Diagnosis.noUSB(error)
        }
        isServing = environment.isServing
        if isServing {
            passed = environment.descriptor
            return
        }
        if let passed = environment.descriptor?.take() {
            current = try adopt(passed)
            return
        }
        let present = context.devices().map { (node: $0, name: HostDeviceName($0)) }
        let meant = present.filter { rule.means($0.name) }
        if meant.count > 1 { throw Diagnosis.ambiguous(rule, candidates: meant.map(\.name)) }
        if let (node, name) = meant.first {
            current = try pass(node, name, open(node, name))
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

    func pass(
        _ node: LibUSBDevice, _ name: HostDeviceName, _ opened: LibUSBHandle.Opened,
        _ passed: ReceivedDescriptor? = nil
    ) throws(BackendError) -> HostDeviceSession {
        try HostDeviceSession(
            node, name: name, opened, passed: passed, context: context, loop: loop, logger: logger)
    }

    /// Takes over a device that somebody else has opened, if it is the one that the rule means.
    private func adopt(_ descriptor: consuming OwnedDescriptor) throws(BackendError)
        -> HostDeviceSession
    {
        let number = descriptor.rawValue
        let passed = ReceivedDescriptor(descriptor)
        let pointer: LibUSBHandle.Pointer
        do throws(LibUSBError) {
            pointer = try context.wrapper.wrap(number)
        } catch {
            throw Diagnosis.noNode(rule, error)
        }
        guard let node = context.device(of: pointer) else {
            pointer.close()
            throw Diagnosis.noNode(rule, .noDevice)
        }
        let name = HostDeviceName(node)
        return try adopt(
            node, name, pointer, ReceivedNode(number, path: name.node), passed)
    }

    func adopt(
        _ node: LibUSBDevice, _ name: HostDeviceName, _ pointer: LibUSBHandle.Pointer,
        _ received: ReceivedNode, _ passed: ReceivedDescriptor
    ) throws(BackendError) -> HostDeviceSession {
        do throws(BackendError) {
            guard rule.means(name) else { throw Diagnosis.otherNode(rule, name) }
            do throws(OpeningError) { try received.lock.get() } catch {
                throw Diagnosis.cannotOpen(name, error)
            }
        } catch {
            pointer.close()
            throw error
        }
        let opened = LibUSBHandle.Opened(
            pointer: pointer, longestRequest: received.longestRequest)
        return try pass(node, name, opened, passed)
    }

    // MARK: - The start

    public func start(on bus: any USBBus) throws(BackendError) {
        if let current {
            do throws(BackendError) {
                try attach(current, to: bus, problems: current.claim())
            } catch {
                _ = current.giveBack()
                self.current = nil
                throw error
            }
        }
        follow(on: bus)
        if rule.isLasting && current == nil {
            sayWaiting()
            look()
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
        starting = completion
        follow(on: bus)
        if let descriptor = passed?.take() { adoptLater(descriptor) } else { look() }
    }

    private func follow(on bus: any USBBus) {
        self.bus = bus
        context.whenDeparted = { [weak self] in self?.departed($0) }
        guard rule.isLasting else { return }
        context.whenArrived = { [weak self] in
            self?.attempts = 0
            self?.look()
        }
        if !SystemFiles.hasUdev { logger.warning("\(rule): \(Diagnosis.noHotplug)") }
    }

    private func sayWaiting() {
        logger.notice("\(rule) is not here yet: waiting for it to be plugged in")
    }

    func started() { starting.take()?(nil) }

    /// Ends a start that has failed, or says what has gone wrong later.
    ///
    /// - Parameter device: what was opened for it. Who hears of the end and tries again must not find
    ///   it taken.
    func fail(_ error: BackendError, givingBack device: HostDeviceSession? = nil) {
        let done = starting.take()
        if done == nil {
            logger.error("\(rule): \(error)")
        } else {
            unfollow()
        }
        guard let device else {
            done?(error)
            return
        }
        leave(device)
        device.giveBack { _ in done?(error) }
    }

    /// A start finds no device that the rule means.
    func findNothing() {
        guard starting != nil else { return }
        if case .address(let bus, let address) = rule {
            fail(
                Diagnosis.noDevice(
                    bus: bus, address: address,
                    of: context.devices().filter { !$0.isHub }.map { HostDeviceName(bare: $0) }))
        } else {
            sayWaiting()
            started()
        }
    }

    // MARK: - The end

    private func unfollow() {
        retry = nil
        returning = nil
        context.whenArrived = nil
        context.whenDeparted = nil
        if let current, isAttached { bus?.detach(current.device) }
        isAttached = false
        bus = nil
        if let current { leave(current) }
        current = nil
    }

    public func stop() {
        unfollow()
        endLooking()
        for device in leaving where !device.giveBack() { logger.warning("\(late([device]))") }
        leaving = []
    }

    /// Waits for the lookout, as what it opens belongs to libusb's context. What it does not end in time
    /// is left open for good.
    private func endLooking() {
        guard isLooking else { return }
        isLooking = false
        let hasEnded = Locked(false)
        lookout.run {
            hasEnded.withLock { $0 = true }
        } completion: {
        }
        let deadline = loop.now + HostDeviceSession.shutDownTime
        while !hasEnded.withLock({ $0 }) {
            guard loop.now < deadline else {
                // With the lookout goes what its jobs use.
                _ = unsafe Unmanaged.passRetained(lookout)
                _ = unsafe Unmanaged.passRetained(context)
                logger.warning("\(rule): a device does not answer, and is left as it is")
                return
            }
            context.handleEvents(waiting: .milliseconds(10))
        }
    }

    public func stop(completion: @escaping (BackendError?) -> Void) {
        unfollow()
        var missing: [HostDeviceSession] = []
        var count = leaving.count + 1
        // Each of them holds on to this backend.
        let end = { [self] in
            count -= 1
            guard count == 0 else { return }
            leaving = []
            completion(missing.isEmpty ? nil : late(missing))
        }
        for device in leaving {
            device.giveBack { isDone in
                if !isDone { missing.append(device) }
                end()
            }
        }
        if isLooking {
            lookout.run {
            } completion: {
                end()
            }
        } else {
            end()
        }
    }

    private func late(_ devices: [HostDeviceSession]) -> BackendError {
        let names = devices.map(\.name.identity).joined(separator: ", ")
        return BackendError(
            "\(names) did not answer in time; the host's drivers may be missing")
    }

    /// For a backend that was opened and never started, or whose start failed.
    deinit {
        endLooking()
        if let current, !current.giveBack() { logger.warning("\(late([current]))") }
    }
}
