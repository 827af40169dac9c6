// SPDX-License-Identifier: Apache-2.0

/// A device as the controller sees it: all that the two say to each other.
///
/// Everything happens on the event loop. A device may complete a transfer before
/// ``submit(_:)`` returns: the port queues completions, so the controller is never re-entered.
public protocol USBDevice: AnyObject {
    /// Fixed while the device is attached; it decides on which kind of port it appears.
    var speed: USBSpeed { get }

    /// A few words for logs and lists, such as `storage disk.img`.
    var summary: String { get }

    /// Who says when an isochronous transfer happens (USB 2.0, 5.12).
    ///
    /// `false`: the controller. It submits each transfer in its service interval, and the device
    /// answers at once. `true`: the device, whose bus has a clock of its own, as one of the host's. It
    /// is given transfers ahead of time, and each has happened when it is completed.
    var keepsIsochronousTime: Bool { get }

    /// The device is plugged in. It keeps the port, weakly or until ``detached()``.
    func attach(to port: any USBPort)

    /// The device is unplugged: its transfers are forgotten and the port must not be used again, but
    /// for the end of ``transferInUse``.
    func detached()

    /// After ``detached()``: a transfer whose memory the device cannot let go of at once, because a
    /// system call fills it. The guest hears that it has failed when the device completes it.
    var transferInUse: Transfer.ID? { get }

    /// Starts a transfer, which ends with exactly one ``USBPort/complete(_:)``.
    ///
    /// Transfers of one endpoint complete in the order in which they were submitted.
    func submit(_ transfer: consuming Transfer)

    /// Asks for an early end of a transfer: it completes as ``Transfer/Status/cancelled``, or as
    /// whatever it had become by then. An unknown id is no error: the completion was on its way.
    func cancel(_ id: Transfer.ID)

    /// The port was reset: the device returns to its default state. Transfers that were in flight
    /// complete as cancelled; those submitted afterwards wait for as long as the reset takes.
    func reset()

    /// The controller drops or renews an endpoint (Configure Endpoint, Reset Device), so that
    /// toggles and sequence numbers start afresh. Emulated devices need nothing of it.
    func resetEndpoint(_ endpoint: EndpointAddress)

    /// The controller uses so many streams of a bulk endpoint, with the numbers from 1 on; 0: none. The
    /// transfers that follow name theirs.
    func setStreams(_ count: Int, for endpoint: EndpointAddress)

    /// The port is suspended (`true`) or resumed (`false`).
    func setSuspended(_ suspended: Bool)
}

extension USBDevice {
    public var keepsIsochronousTime: Bool { false }
    public var transferInUse: Transfer.ID? { nil }
    public func resetEndpoint(_ endpoint: EndpointAddress) {}
    public func setStreams(_ count: Int, for endpoint: EndpointAddress) {}
    public func setSuspended(_ suspended: Bool) {}
}

/// A port of the root hub: the only thing that a device sees of the controller.
public protocol USBPort: AnyObject {
    /// Ends a transfer. Answers to transfers that the controller has given up are ignored.
    func complete(_ completion: Transfer.Completion)

    /// The device went away by itself; the guest sees an unplug.
    func disconnect()

    /// Remote wake-up: resumes the port if it is suspended and the guest allows it.
    func wake()
}

/// Why a device cannot be plugged in.
public enum AttachError: Error, Equatable {
    /// All ports of the kind are taken.
    case noFreePort(USBSpeed)
    /// The device is attached already.
    case alreadyAttached
}

/// The place where devices are plugged in and unplugged: the root hub.
public protocol USBBus: AnyObject {
    /// Plugs the device into a free port of its kind.
    func attach(_ device: any USBDevice) throws(AttachError)

    /// Unplugs the device; one that is not attached is left alone.
    func detach(_ device: any USBDevice)
}
