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

    private var isLooking = false
    private var looksAgain = false
    private var attempts = 0
    private var retry: Watch?

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
        if let passed = environment.descriptor?.take() {
            current = try adopt(passed)
            return
        }
        let present = context.devices().map { (node: $0, name: HostDeviceName($0)) }
        let meant = present.filter { rule.means($0.name) }
        if meant.count > 1 { throw Diagnosis.ambiguous(rule, candidates: meant.map(\.name)) }
        if let (node, name) = meant.first {
            do throws(PassedDevice.Refusal) {
                current = try PassedDevice(
                    node, name: name, context: context, loop: loop, logger: logger)
            } catch {
                throw error.error
            }
        } else if case .address(let bus, let address) = rule {
            throw Diagnosis.noDevice(
                bus: bus, address: address,
                of: present.filter { !$0.node.isHub }.map(\.name))
        }
    }

    /// Takes over a device that somebody else has opened, if it is the one that the rule means.
    private func adopt(_ passed: consuming Descriptor) throws(BackendError) -> PassedDevice {
        let opened: (LibUSBDevice, LibUSBHandle.Pointer)
        do throws(LibUSBError) {
            opened = try context.wrap(passed.rawValue)
        } catch {
            throw Diagnosis.noNode(rule, error)
        }
        let (wrapped, pointer) = opened
        // libusb knows a device that was handed to it by its number alone. Its place, and its leaving,
        // it tells of the same device among those that it has found itself.
        let node =
            context.devices().first { $0.bus == wrapped.bus && $0.address == wrapped.address }
            ?? wrapped
        let name = HostDeviceName(node)
        guard rule.means(name) else {
            pointer.close()
            throw Diagnosis.otherNode(rule, name)
        }
        do throws(PassedDevice.Refusal) {
            return try PassedDevice(
                node, name: name, opened: (pointer, PassedDescriptor(passed)), context: context,
                loop: loop, logger: logger)
        } catch {
            throw error.error
        }
    }

    public func start(on bus: any USBBus) throws(BackendError) {
        if let current {
            do throws(BackendError) {
                try attach(current, to: bus, problems: current.claim())
            } catch {
                giveBack(current)
                self.current = nil
                throw error
            }
        }
        self.bus = bus
        context.whenDeparted = { [weak self] in self?.departed($0) }
        guard rule.isLasting else { return }
        context.whenArrived = { [weak self] in
            self?.attempts = 0
            self?.look()
        }
        if !SystemFiles.hasUdev { logger.warning("\(rule): \(Diagnosis.noHotplug)") }
        if current == nil {
            logger.notice("\(rule) is not here yet: waiting for it to be plugged in")
            look()
        }
    }

    public func stop() {
        retry = nil
        context.whenArrived = nil
        context.whenDeparted = nil
        if let current, isAttached { bus?.detach(current.device) }
        bus = nil
        let last = [current].compactMap(\.self) + leaving
        current = nil
        leaving = []
        for device in last { giveBack(device) }
    }

    /// For a backend that was opened and never started.
    deinit {
        if let current { giveBack(current) }
    }

    private func giveBack(_ device: PassedDevice) {
        if !device.giveBack() {
            logger.warning(
                "\(device.name.identity) did not answer in time; the host's drivers may be missing")
        }
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
        guard !names.isEmpty else { return }
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
        let meant = names.filter { rule.means($0) }
        // It may have left meanwhile, or another one have come.
        let present = candidates().compactMap { node in
            meant.first { $0.bus == node.bus && $0.address == node.address }.map { (node, $0) }
        }
        if let (node, name) = present.first {
            if meant.count > 1 {
                logger.notice("\(rule) means \(meant.count) devices; taking \(name.portRule)")
            }
            take(node, name)
        }
        if looksAgain {
            looksAgain = false
            look()
        }
    }

    private func take(_ node: LibUSBDevice, _ name: HostDeviceName) {
        let device: PassedDevice
        do throws(PassedDevice.Refusal) {
            device = try PassedDevice(
                node, name: name, context: context, loop: loop, logger: logger)
        } catch {
            attempts += 1
            if case .permission = error, attempts < Self.patience {
                retry = loop.schedule(at: loop.now + Self.patienceStep) { [weak self] in
                    self?.look()
                }
            } else {
                logger.error("\(rule): \(error.error)")
            }
            return
        }
        current = device
        device.claim { [weak self] result in
            guard let self, current === device else { return }
            do throws(BackendError) {
                guard let bus else { return }
                try attach(device, to: bus, problems: result.get())
                logger.notice("\(rule): \(name.specification) (\(name.identity)) is plugged in")
            } catch {
                logger.error("\(rule): \(error)")
                current = nil
                device.giveBackUnused()
                leaving.append(device)
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
            logger.warning("\(name) is gone")
            return
        }
        logger.warning("\(name) is gone; \(rule) waits for it to come back")
        // Its successor may be here already.
        retry = loop.schedule(at: loop.now) { [weak self] in self?.look() }
    }
}
