// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Logging
internal import Platform
internal import USB

/// One opening of a host device, until it is closed. A device that is replugged has a new session.
final class HostDeviceSession {
    let name: HostDeviceName
    let node: LibUSBDevice
    let device: HostDevice
    private let control: DeviceControl
    private let handle: LibUSBHandle
    private let jobs: SerialQueue
    private let loop: any EventLoop
    private var isDisconnected = false

    /// The timeout of a shutdown.
    static let shutDownTimeout = Duration.seconds(4)

    /// Takes ownership of an opened device, and closes it if this throws. Claims no interface.
    ///
    /// - Parameter received: the device node, if another process has opened it.
    init(
        _ node: LibUSBDevice, name: HostDeviceName, _ opened: LibUSBHandle.Opened,
        received: ReceivedDescriptor?, context: LibUSBContext, jobs: SerialQueue,
        loop: any EventLoop, logger: Logger
    ) throws(BackendError) {
        self.node = node
        self.name = name
        self.jobs = jobs
        self.loop = loop
        let speed: USBSpeed
        do throws(BackendError) {
            if node.isHub { throw Diagnosis.hub(name) }
            guard let known = node.speed else { throw Diagnosis.unknownSpeed(name) }
            speed = known
        } catch {
            opened.pointer.close()
            throw error
        }
        control = DeviceControl(opened.pointer, portPath: node.portPath, node: name.node)
        handle = LibUSBHandle(
            opened, node: received, control: control, context: context, jobs: jobs, loop: loop)
        device = HostDevice(
            handle, speed: speed, summary: "host \(name.bus):\(name.address) \(name.displayName)",
            loop: loop, logger: logger)
    }

    /// Locks and opens a device. Usable on any thread while a reference to the device is kept.
    static func open(
        _ opener: LibUSBDevice.Opener, name: HostDeviceName
    ) throws(OpeningError) -> LibUSBHandle.Opened {
        let lock = try DeviceNodeLock(node: name.node)
        do throws(LibUSBError) {
            return LibUSBHandle.Opened(
                pointer: try opener.open(), lock: lock, longestRequest: lock.longestRequest)
        } catch {
            throw .failed(error)
        }
    }

    var isClosed: Bool { handle.isClosed }

    /// Called once when the device is closed.
    var whenClosed: (() -> Void)? {
        get { handle.whenClosed }
        set { handle.whenClosed = newValue }
    }

    /// Claims the interfaces, blocking the loop.
    ///
    /// - Returns: a sentence for each interface that cannot be claimed.
    func claim() throws(BackendError) -> [String] { try accept(control.claimDevice()) }

    /// Claims the interfaces without blocking the loop.
    func claim(completion: @escaping (Result<[String], BackendError>) -> Void) {
        let control = control
        jobs.run {
            control.claimDevice()
        } completion: { [self] claims in
            completion(Result { () throws(BackendError) in try accept(claims) })
            if isDisconnected { handle.closeWhenIdle() }
        }
    }

    private func accept(_ claims: DeviceControl.Claims) throws(BackendError) -> [String] {
        device.descriptorFilter.streamLimit = claims.streamLimit
        device.endpoints = claims.endpoints
        if claims.isDisconnected { throw Diagnosis.cannotOpen(name, .noDevice) }
        if claims.claimed.isEmpty && !claims.problems.isEmpty {
            throw Diagnosis.nothingClaimed(name, problems: claims.problems)
        }
        return claims.problems
    }

    // MARK: - Closing

    /// Closes a disconnected device once no transfer and no job is left.
    func closeWhenIdle() {
        isDisconnected = true
        handle.closeWhenIdle()
    }

    /// Releases the device to the host's drivers and closes it, without blocking the loop.
    ///
    /// - Parameter completion: called once on the loop, with `false` after ``shutDownTimeout``.
    func shutDown(completion: @escaping (Bool) -> Void) {
        handle.shutDown(by: loop.now + Self.shutDownTimeout, completion: completion)
    }

    /// Releases the device to the host's drivers and closes it, blocking the loop.
    ///
    /// - Returns: `false` after ``shutDownTimeout``.
    func shutDown() -> Bool { handle.shutDown(by: loop.now + Self.shutDownTimeout) }
}
