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

    /// How often a device that just came is tried again while permission is missing, which udev gives
    /// in its own time.
    private static let patience = 10
    private static let patienceStep = Duration.milliseconds(200)

    private let rule: DeviceRule
    private let loop: any EventLoop
    private let logger: Logger
    private let context: LibUSBContext
    /// For what has to be known of a device before it is opened.
    private let lookout: Worker
    private var bus: (any USBBus)?
    /// The device that the rule follows now.
    private var current: PassedDevice?
    /// Whether ``current`` is plugged in, and not only about to be.
    private var isAttached = false
    /// Devices that have left, until libusb has noticed and the kernel has given all back.
    private var leaving: [PassedDevice] = []

    /// The lookout is at work for this.
    private var isLooking = false
    private var looksAgain = false
    private var attempts = 0
    private var retry: Watch?

    /// Nothing may be waited for: what is named is opened when the backend starts.
    private let isServing: Bool
    /// What came along, until then.
    private var passed: PassedDescriptor?
    /// Who waits to hear whether the start succeeded.
    private var starting: ((BackendError?) -> Void)?

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
            return try PassedDevice.open(node.opener, name: name)
        } catch {
            throw Diagnosis.cannotOpen(name, error)
        }
    }

    private func pass(
        _ node: LibUSBDevice, _ name: HostDeviceName, _ opened: LibUSBHandle.Opened,
        _ passed: PassedDescriptor? = nil
    ) throws(BackendError) -> PassedDevice {
        try PassedDevice(
            node, name: name, opened, passed: passed, context: context, loop: loop, logger: logger)
    }

    /// Takes over a device that somebody else has opened, if it is the one that the rule means.
    private func adopt(_ descriptor: consuming Descriptor) throws(BackendError) -> PassedDevice {
        let number = descriptor.rawValue
        let passed = PassedDescriptor(descriptor)
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
        return try adopt(node, HostDeviceName(node), pointer, number, passed)
    }

    private func adopt(
        _ node: LibUSBDevice, _ name: HostDeviceName, _ pointer: LibUSBHandle.Pointer,
        _ number: CInt, _ passed: PassedDescriptor
    ) throws(BackendError) -> PassedDevice {
        do throws(BackendError) {
            guard rule.means(name) else { throw Diagnosis.otherNode(rule, name) }
            do throws(OpeningError) { try NodeMark.keep(number, of: name.node) } catch {
                throw Diagnosis.cannotOpen(name, error)
            }
        } catch {
            pointer.close()
            throw error
        }
        return try pass(node, name, LibUSBHandle.Opened(pointer: pointer), passed)
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

    public func start(on bus: any USBBus, whenDone done: @escaping (BackendError?) -> Void) {
        guard isServing else {
            do throws(BackendError) {
                try start(on: bus)
                done(nil)
            } catch {
                done(error)
            }
            return
        }
        starting = done
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

    private func started() { starting.take()?(nil) }

    /// Ends a start that has failed, or says what has gone wrong later.
    private func fail(_ error: BackendError) {
        guard let done = starting.take() else {
            logger.error("\(rule): \(error)")
            return
        }
        unfollow()
        done(error)
    }

    /// A start finds no device that the rule means.
    private func findNothing() {
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
        context.whenArrived = nil
        context.whenDeparted = nil
        if let current, isAttached { bus?.detach(current.device) }
        isAttached = false
        bus = nil
        if let current { leaving.append(current) }
        current = nil
    }

    public func stop() {
        unfollow()
        // What it opens belongs to libusb's context.
        if isLooking { lookout.waitUntilIdle() }
        for device in leaving where !device.giveBack() { logger.warning("\(late([device]))") }
        leaving = []
    }

    public func stop(whenDone done: @escaping (BackendError?) -> Void) {
        unfollow()
        var missing: [PassedDevice] = []
        var count = leaving.count + 1
        // Each of them holds on to this backend.
        let end = { [self] in
            count -= 1
            guard count == 0 else { return }
            leaving = []
            done(missing.isEmpty ? nil : late(missing))
        }
        for device in leaving {
            device.giveBack { isDone in
                if !isDone { missing.append(device) }
                end()
            }
        }
        if isLooking {
            lookout.perform {
            } then: {
                end()
            }
        } else {
            end()
        }
    }

    private func late(_ devices: [PassedDevice]) -> BackendError {
        let names = devices.map(\.name.identity).joined(separator: ", ")
        return BackendError(
            "\(names) did not answer in time; the host's drivers may be missing")
    }

    /// For a backend that was opened and never started, or whose start failed.
    deinit {
        if isLooking { lookout.waitUntilIdle() }
        if let current, !current.giveBack() { logger.warning("\(late([current]))") }
    }

    // MARK: - Coming

    /// Looks whether a device is there that the rule means, unless it has one.
    ///
    /// The kernel may still be busy with a device that just came, so names are read and nodes are
    /// opened first on the worker.
    private func look() {
        guard bus != nil, current == nil else { return }
        if isLooking {
            looksAgain = true
            return
        }
        let names = candidates().map { HostDeviceName(bare: $0) }
        guard !names.isEmpty else { return findNothing() }
        isLooking = true
        lookout.perform {
            names.map { name in
                SystemFiles.settle(name.node)
                return name.withWords()
            }
        } then: { [weak self] names in
            self?.found(names)
        }
    }

    private func candidates() -> [LibUSBDevice] {
        context.devices().filter { device in
            !device.isHub && rule.mayMean(HostDeviceName(bare: device))
                && !leaving.contains { $0.node.identity == device.identity }
        }
    }

    private func found(_ names: [HostDeviceName]) {
        isLooking = false
        guard bus != nil else { return }
        let meant = names.filter { rule.means($0) }
        // It may have left meanwhile, or another one have come.
        let present = candidates().compactMap { node in
            meant.first { $0.bus == node.bus && $0.address == node.address }.map { (node, $0) }
        }
        if meant.count > 1 && starting != nil {
            fail(Diagnosis.ambiguous(rule, candidates: meant))
        } else if let (node, name) = present.first {
            if meant.count > 1 {
                logger.notice("\(rule) means \(meant.count) devices; taking \(name.portRule)")
            }
            take(node, name)
        } else {
            findNothing()
        }
        lookAgain()
    }

    private func lookAgain() {
        guard looksAgain, !isLooking else { return }
        looksAgain = false
        look()
    }

    private func take(_ node: LibUSBDevice, _ name: HostDeviceName) {
        isLooking = true
        let opener = node.opener
        lookout.perform {
            Result { () throws(OpeningError) in try PassedDevice.open(opener, name: name) }
        } then: { [weak self] result in
            // The device's reference must outlive its opening.
            _ = node
            guard let self else { return }
            isLooking = false
            opened(node, name, result)
            lookAgain()
        }
    }

    private func opened(
        _ node: LibUSBDevice, _ name: HostDeviceName,
        _ result: Result<LibUSBHandle.Opened, OpeningError>
    ) {
        do throws(OpeningError) {
            let opened = try result.get()
            guard bus != nil, current == nil else { return opened.pointer.close() }
            do throws(BackendError) { claim(try pass(node, name, opened)) } catch { fail(error) }
        } catch {
            guard bus != nil else { return }
            attempts += 1
            if error == .refused(.access), starting == nil, attempts < Self.patience {
                retry = loop.schedule(at: loop.now + Self.patienceStep) { [weak self] in
                    self?.look()
                }
            } else {
                fail(Diagnosis.cannotOpen(name, error))
            }
        }
    }

    /// Takes over, without waiting, what somebody else has opened.
    private func adoptLater(_ descriptor: consuming Descriptor) {
        isLooking = true
        let number = descriptor.rawValue
        let passed = PassedDescriptor(descriptor)
        let wrapper = context.wrapper
        lookout.perform {
            Result { () throws(LibUSBError) in try wrapper.wrap(number) }
        } then: { [weak self] result in
            guard let self else { return }
            do throws(LibUSBError) {
                let pointer = try result.get()
                guard let node = context.device(of: pointer) else {
                    pointer.close()
                    throw .noDevice
                }
                name(node, pointer, number, passed)
            } catch {
                isLooking = false
                fail(Diagnosis.noNode(rule, error))
            }
        }
    }

    private func name(
        _ node: LibUSBDevice, _ pointer: LibUSBHandle.Pointer, _ number: CInt,
        _ passed: PassedDescriptor
    ) {
        let bare = HostDeviceName(bare: node)
        lookout.perform {
            bare.withWords()
        } then: { [weak self] name in
            guard let self else { return }
            isLooking = false
            guard bus != nil else { return pointer.close() }
            do throws(BackendError) {
                claim(try adopt(node, name, pointer, number, passed))
            } catch {
                fail(error)
            }
        }
    }

    private func claim(_ device: PassedDevice) {
        current = device
        device.claim { [weak self] result in
            guard let self, current === device else { return }
            do throws(BackendError) {
                guard let bus else { return }
                try attach(device, to: bus, problems: result.get())
                logger.notice(
                    "\(rule): \(device.name.specification) (\(device.name.identity)) is plugged in")
                started()
            } catch {
                current = nil
                device.giveBackUnused()
                leaving.append(device)
                fail(error)
            }
        }
    }

    /// Plugs a device in whose interfaces are ours, all but those that have problems.
    private func attach(
        _ device: PassedDevice, to bus: any USBBus, problems: [String]
    ) throws(BackendError) {
        for problem in problems {
            logger.warning("\(device.name.specification): \(problem); the guest cannot use it")
        }
        if let streams = device.device.streams {
            logger.warning("\(device.name.specification): \(streams.words)")
        }
        device.device.whenLost = { [weak self, weak device] in
            if let self, let device { left(device) }
        }
        do throws(AttachError) {
            try bus.attach(device.device)
        } catch {
            throw BackendError("\(device.name.specification) cannot be plugged in: \(error)")
        }
        isAttached = true
    }

    // MARK: - Going

    /// libusb has noticed that a device is not there any more.
    private func departed(_ identity: LibUSBDevice.Identity) {
        for device in leaving where device.node.identity == identity { device.hasDeparted = true }
        if let current, current.node.identity == identity {
            current.hasDeparted = true
            if isAttached {
                current.device.deviceLeft()
            } else {
                left(current)
            }
        }
        leaving.removeAll { $0.hasDeparted && $0.isClosed }
    }

    /// The device that the rule followed is not there any more.
    private func left(_ device: PassedDevice) {
        guard device === current else { return }
        current = nil
        isAttached = false
        leaving.append(device)
        device.closeWhenIdle()
        let name = "\(device.name.specification) (\(device.name.identity))"
        guard rule.isLasting else {
            if starting != nil { return fail(BackendError("\(name) is gone")) }
            logger.warning("\(name) is gone")
            return
        }
        logger.warning("\(name) is gone; \(rule) waits for it to come back")
        // Its successor may be here already.
        retry = loop.schedule(at: loop.now) { [weak self] in self?.look() }
        started()
    }
}
