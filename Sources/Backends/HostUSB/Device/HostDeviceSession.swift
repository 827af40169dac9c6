// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Logging
internal import Platform
internal import USB

/// A device of the host from its opening to its end: what is left of it when it comes back, is a
/// new one.
final class HostDeviceSession {
    let name: HostDeviceName
    let node: LibUSBDevice
    let device: HostDevice
    private let control: DeviceControl
    private let handle: LibUSBHandle
    private let worker: Worker
    private let loop: any EventLoop
    private var isLeaving = false

    /// How long the end of the program waits for the kernel and the device.
    static let shutDownTime = Duration.seconds(4)

    /// Takes over an opened device, which is closed if this throws; no interface of it is taken yet.
    ///
    /// - Parameter passed: its node, if somebody else has opened it.
    init(
        _ node: LibUSBDevice, name: HostDeviceName, _ opened: LibUSBHandle.Opened,
        passed: ReceivedDescriptor?, context: LibUSBContext, loop: any EventLoop, logger: Logger
    ) throws(BackendError) {
        self.node = node
        self.name = name
        self.loop = loop
        let speed: USBSpeed
        do throws(BackendError) {
            if node.isHub { throw Diagnosis.hub(name) }
            guard let known = node.speed else { throw Diagnosis.unknownSpeed(name) }
            speed = known
            do {
                worker = try Worker(name: "host \(name.bus):\(name.address)", loop: loop)
            } catch {
                throw BackendError("cannot start a thread for \(name.identity): \(error)")
            }
        } catch {
            opened.pointer.close()
            throw error
        }
        control = DeviceControl(opened.pointer, portPath: node.portPath, node: name.node)
        handle = LibUSBHandle(
            opened, node: passed, control: control, context: context, worker: worker,
            loop: loop)
        device = HostDevice(
            handle, speed: speed, summary: "host \(name.bus):\(name.address) \(name.identity)",
            loop: loop, logger: logger)
    }

    /// Opens a device and keeps it from others; on any thread, for as long as there is a reference on
    /// the device.
    static func open(
        _ opener: LibUSBDevice.Opener, name: HostDeviceName
    ) throws(OpeningError) -> LibUSBHandle.Opened {
        let mark = try DeviceNodeLock.keep(name.node)
        do throws(LibUSBError) {
            return LibUSBHandle.Opened(
                pointer: try opener.open(), mark: mark, longestRequest: mark.longestRequest)
        } catch {
            throw .refused(error)
        }
    }

    var isClosed: Bool { handle.isClosed }

    /// Called once when it is.
    var whenClosed: (() -> Void)? {
        get { handle.whenClosed }
        set { handle.whenClosed = newValue }
    }

    /// Takes the interfaces, waiting for it.
    ///
    /// - Returns: one sentence for each that is not to be had.
    func claim() throws(BackendError) -> [String] { try judge(control.begin()) }

    /// Takes the interfaces without waiting.
    func claim(then completion: @escaping (Result<[String], BackendError>) -> Void) {
        let control = control
        worker.run {
            control.begin()
        } completion: { [self] claims in
            completion(Result { () throws(BackendError) in try judge(claims) })
            if isLeaving { handle.closeWhenIdle() }
        }
    }

    private func judge(_ claims: DeviceControl.Claims) throws(BackendError) -> [String] {
        device.offer.streams = claims.streams
        device.endpoints = claims.endpoints
        if claims.isGone { throw Diagnosis.cannotOpen(name, .noDevice) }
        if claims.claimed.isEmpty && !claims.problems.isEmpty {
            throw Diagnosis.nothingClaimed(name, problems: claims.problems)
        }
        return claims.problems
    }

    // MARK: - The end

    /// The device has left: closes it, once the kernel has given everything back.
    func closeWhenIdle() {
        isLeaving = true
        handle.closeWhenIdle()
    }

    /// Gives the device back to the host's drivers and closes it, without waiting.
    ///
    /// - Parameter done: called once on the loop, with whether that was done in time.
    func giveBack(then done: @escaping (Bool) -> Void) {
        handle.shutDown(by: loop.now + Self.shutDownTime, then: done)
    }

    /// Gives the device back to the host's drivers and closes it, waiting for it.
    ///
    /// - Returns: whether that was done in time.
    func giveBack() -> Bool { handle.shutDown(by: loop.now + Self.shutDownTime) }
}
