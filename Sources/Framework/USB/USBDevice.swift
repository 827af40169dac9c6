// SPDX-License-Identifier: Apache-2.0

/// A USB device, as the controller calls it.
///
/// All calls are made on the event loop. A device may complete a transfer before ``submit(_:)``
/// returns: the port queues completions, so the controller is never re-entered.
///
/// A device accesses a transfer's ``Transfer/buffer`` on the event loop only. Data that a thread or
/// the kernel moves later goes through memory of the device's own, and is copied on the loop: the
/// guest's memory may be revoked by then, which the buffer checks at each access.
public protocol USBDevice: AnyObject {
    /// The speed of the connection, which decides between USB 2 and USB 3 ports. Constant while the
    /// device is attached.
    var speed: USBSpeed { get }

    /// A short description for logs and lists, such as `storage disk.img`.
    var summary: String { get }

    /// Whether the device schedules isochronous transfers itself (USB 2.0, 5.12).
    ///
    /// `false`: the controller submits each transfer in its service interval, and the device
    /// completes it at once. `true`: the device has a bus with a clock of its own, as a host's
    /// device does. It receives transfers ahead of time and completes each when it has ended on
    /// that bus.
    var keepsIsochronousTime: Bool { get }

    /// Attaches the device to a port, which it keeps weakly or until ``detached()``.
    func attach(to port: any USBPort)

    /// Detaches the device: its transfers have ended, and the port ignores all further calls.
    func detached()

    /// Starts a transfer, which ends with exactly one ``USBPort/complete(_:)``.
    ///
    /// Transfers of one endpoint, or of one stream of it, complete in the order of their
    /// submission.
    func submit(_ transfer: consuming Transfer)

    /// Cancels a transfer: it completes as ``Transfer/Status/cancelled`` with the bytes that have
    /// moved, or with the status it already had. An unknown id is ignored: the transfer has
    /// completed.
    ///
    /// For Stop Endpoint and a halt, the controller waits some milliseconds for the completion,
    /// then revokes the transfer's memory. In all other cases it revokes the memory at once and
    /// ignores the completion.
    func cancel(_ id: Transfer.ID)

    /// Resets the device to its Default state after a reset of its port. In-flight transfers
    /// complete as cancelled; transfers submitted afterwards wait until the reset is done.
    func reset()

    /// Resets the data toggle and sequence number of an endpoint (Configure Endpoint, Reset
    /// Endpoint, Reset Device). Emulated devices have none.
    func resetEndpoint(_ endpoint: EndpointAddress)

    /// Sets the number of streams that the controller uses of a bulk endpoint, with the Stream IDs
    /// from 1 on; 0 for none.
    func setStreams(_ count: Int, for endpoint: EndpointAddress)

    /// Suspends the port (`true`) or resumes it (`false`).
    func setSuspended(_ suspended: Bool)
}

extension USBDevice {
    /// `false`: the controller schedules isochronous transfers.
    public var keepsIsochronousTime: Bool { false }

    /// Has no effect.
    public func resetEndpoint(_ endpoint: EndpointAddress) {}

    /// Has no effect.
    public func setStreams(_ count: Int, for endpoint: EndpointAddress) {}

    /// Has no effect.
    public func setSuspended(_ suspended: Bool) {}
}

/// A port of the root hub, as its device calls it on the event loop.
public protocol USBPort: AnyObject {
    /// Completes a transfer. The completion of a transfer that the controller has removed is
    /// ignored.
    func complete(_ completion: Transfer.Completion)

    /// Disconnects the device, as if it had been unplugged.
    func disconnect()

    /// Signals remote wakeup: resumes the port if it is suspended and the guest has enabled wakeup.
    func wake()
}

/// The reason why a device cannot be attached.
public enum AttachError: Error, Equatable, CustomStringConvertible {
    /// All ports for devices of this speed are in use; `count` is their number.
    case noFreePort(USBSpeed, count: Int)
    /// The device is attached already.
    case alreadyAttached

    /// The error in words for the operator.
    public var description: String {
        switch self {
        case .noFreePort(let speed, let count):
            "all \(count) \(speed.isSuperSpeed ? "SuperSpeed" : "USB 2") ports are in use"
        case .alreadyAttached: "it is attached already"
        }
    }
}

/// A USB bus that devices are attached to: the root hub.
public protocol USBBus: AnyObject {
    /// Attaches a device to a free port for its speed.
    func attach(_ device: any USBDevice) throws(AttachError)

    /// Detaches a device; one that is not attached is ignored.
    func detach(_ device: any USBDevice)
}
