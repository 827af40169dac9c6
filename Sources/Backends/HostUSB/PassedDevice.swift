// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Logging
internal import Platform
internal import USB

/// A device of the host from its opening to its end: what is left of it when it comes back, is a
/// new one.
final class PassedDevice {
    let name: HostDeviceName
    let node: LibUSBDevice
    let device: HostDevice
    private let control: DeviceControl
    private let handle: LibUSBHandle
    private let worker: Worker
    private let loop: any EventLoop
    private var isLeaving = false

    /// Whether libusb has said that the device is not there any more.
    var hasDeparted = false

    /// How long the end of the program waits for the kernel and the device.
    private static let shutDownTime = Duration.seconds(4)

    /// Opens a device; no interface of it is taken yet.
    ///
    /// - Parameter opened: the device as somebody else opened it, with the descriptor of its node.
    init(
        _ node: LibUSBDevice, name: HostDeviceName,
        opened: (pointer: LibUSBHandle.Pointer, node: PassedDescriptor)? = nil,
        context: LibUSBContext, loop: any EventLoop, logger: Logger
    ) throws(Refusal) {
        self.node = node
        self.name = name
        self.loop = loop
        if node.isHub { throw .final(Diagnosis.hub(name)) }
        guard let speed = node.speed else { throw .final(Diagnosis.unknownSpeed(name)) }
        do {
            worker = try Worker(name: "host \(name.bus):\(name.address)", loop: loop)
        } catch {
            throw .final(BackendError("cannot start a thread for \(name.identity): \(error)"))
        }
        let pointer: LibUSBHandle.Pointer
        do throws(LibUSBError) {
            pointer = if let opened { opened.pointer } else { try node.open() }
        } catch {
            let words = Diagnosis.cannotOpen(name, error)
            throw error == .access ? .permission(words) : .final(words)
        }
        control = DeviceControl(pointer, portPath: node.portPath, node: name.node)
        handle = LibUSBHandle(
            pointer, node: opened?.node, control: control, context: context, worker: worker,
            loop: loop)
        device = HostDevice(
            handle, speed: speed, summary: "host \(name.bus):\(name.address) \(name.identity)",
            loop: loop, logger: logger)
    }

    /// Why a device cannot be opened.
    enum Refusal: Error {
        /// Not allowed, which on a device that was just plugged in may change in a moment.
        case permission(BackendError)
        case final(BackendError)

        var error: BackendError {
            switch self {
            case .permission(let error), .final(let error): error
            }
        }
    }

    var isClosed: Bool { handle.isClosed }

    /// Takes the interfaces, waiting for it.
    ///
    /// - Returns: one sentence for each that is not to be had.
    func claim() throws(BackendError) -> [String] { try judge(control.begin()) }

    /// Takes the interfaces without waiting.
    func claim(then completion: @escaping (Result<[String], BackendError>) -> Void) {
        let control = control
        worker.perform {
            control.begin()
        } then: { [self] claims in
            completion(Result { () throws(BackendError) in try judge(claims) })
            if isLeaving { handle.closeWhenIdle() }
        }
    }

    private func judge(_ claims: DeviceControl.Claims) throws(BackendError) -> [String] {
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

    /// Gives an unused device back to the host's drivers, without waiting.
    func giveBackUnused() {
        let control = control
        worker.perform {
            control.giveBack(resetting: false)
        } then: { [self] _ in
            handle.closeWhenIdle()
        }
    }

    /// Gives the device back to the host's drivers and closes it, waiting for it.
    ///
    /// - Returns: whether that was done in time.
    func giveBack() -> Bool { handle.shutDown(by: loop.now + Self.shutDownTime) }
}
