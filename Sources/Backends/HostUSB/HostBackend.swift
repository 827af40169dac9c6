// SPDX-License-Identifier: Apache-2.0

public import BackendKit
internal import Logging
internal import Platform
public import USB

/// The backend `host`: a USB device of this host, passed through to the guest by libusb-1.0.
///
/// The device is taken from the host's drivers for as long as the program runs, and given back to
/// them at its end.
public final class HostBackend: DeviceBackend {
    public static let scheme = "host"
    public static let summary = "a USB device of this host, passed through to the guest"
    public static let parameters = [
        Parameter("bus", value: "N", isRequired: true, summary: "the bus it is on, as lsusb says"),
        Parameter(
            "address", value: "N", isRequired: true,
            summary: "its address on the bus, which lsusb calls 'Device'"),
    ]
    public static let example = "host:bus=1,address=4"

    /// How long the end of the program waits for the kernel and the device.
    private static let shutDownTime = Duration.seconds(4)

    private let loop: any EventLoop
    private let logger: Logger
    private let context: LibUSBContext
    private let node: LibUSBDevice
    private let name: HostDeviceName
    private let control: DeviceControl
    private let handle: LibUSBHandle
    private let device: HostDevice
    private var bus: (any USBBus)?

    public init(
        _ specification: DeviceSpecification, context environment: BackendContext
    ) throws(BackendError) {
        guard let bus = try specification.number("bus", in: UInt8(1)...255),
            let address = try specification.number("address", in: UInt8(1)...127)
        else {
            throw BackendError("'\(specification.text)' needs bus and address: \(Self.example)")
        }
        loop = environment.loop
        logger = environment.logger
        do throws(LibUSBError) {
            context = try LibUSBContext(loop: loop)
        } catch {
            throw Diagnosis.noUSB(error)
        }
        let present = context.devices()
        guard let node = present.first(where: { $0.bus == bus && $0.address == address }) else {
            throw Diagnosis.noDevice(
                bus: bus, address: address,
                of: present.filter { !$0.isHub }.map { HostDeviceName($0) })
        }
        self.node = node
        name = HostDeviceName(node)
        if node.isHub { throw Diagnosis.hub(name) }
        guard let speed = node.speed else { throw Diagnosis.unknownSpeed(name) }
        let worker: Worker
        do {
            worker = try Worker(name: "host \(bus):\(address)", loop: loop)
        } catch {
            throw BackendError("cannot start a thread for \(name.specification): \(error)")
        }
        let pointer: LibUSBHandle.Pointer
        do throws(LibUSBError) {
            pointer = try node.open()
        } catch {
            throw Diagnosis.cannotOpen(name, error)
        }
        control = DeviceControl(pointer, portPath: node.portPath)
        handle = LibUSBHandle(
            pointer, control: control, context: context, worker: worker, loop: loop)
        device = HostDevice(
            handle, speed: speed, summary: "host \(bus):\(address) \(name.identity)", loop: loop,
            logger: logger)
    }

    public func start(on bus: any USBBus) throws(BackendError) {
        let claims = control.begin()
        if claims.claimed.isEmpty && !claims.problems.isEmpty {
            let holders = SystemFiles.holders(ofNode: name.node)
            giveBack()
            throw Diagnosis.nothingClaimed(name, problems: claims.problems, holders: holders)
        }
        for problem in claims.problems {
            logger.warning("\(name.specification): \(problem); the guest cannot use it")
        }
        device.whenLost = { [weak self] in
            guard let self else { return }
            logger.warning("\(name.specification) (\(name.identity)) is gone")
            handle.closeWhenIdle()
        }
        context.whenDeparted = { [weak self] departed in
            guard let self, departed == node.identity else { return }
            device.deviceLeft()
        }
        do throws(AttachError) {
            try bus.attach(device)
        } catch {
            giveBack()
            throw BackendError("\(name.specification) cannot be plugged in: \(error)")
        }
        self.bus = bus
    }

    public func stop() {
        bus?.detach(device)
        bus = nil
        giveBack()
    }

    /// For a backend that was opened and never started.
    deinit { giveBack() }

    private func giveBack() {
        if !handle.shutDown(by: loop.now + Self.shutDownTime) {
            logger.warning(
                "\(name.specification) did not answer in time; the host's drivers may be missing")
        }
    }
}
