// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The controller's end of an attached device: what the device calls (``USBPort``).
///
/// Completions and port changes are queued in the ``DeviceInbox`` and handled in the engine's next
/// service pass, so a device may call from within ``USBDevice/submit(_:)``. After ``detach()`` all
/// calls are ignored.
final class PortConnection: USBPort {
    /// Root hub port index, from 0; the specification's port number is one more.
    let port: Int
    /// `nil` once the device is detached.
    private(set) var device: (any USBDevice)?
    /// Released with the device: a message about the connection in the inbox must not retain both.
    private var inbox: DeviceInbox?

    init(port: Int, device: any USBDevice, inbox: DeviceInbox) {
        self.port = port
        self.device = device
        self.inbox = inbox
    }

    /// Whether the device is attached.
    var isAttached: Bool { device != nil }

    func submit(_ transfer: consuming Transfer) { device?.submit(transfer) }

    func complete(_ completion: Transfer.Completion) {
        inbox?.append(.completed(completion))
    }

    func disconnect() {
        inbox?.append(.disconnected(self))
    }

    func wake() {
        inbox?.append(.woke(self))
    }

    /// Detaches the device.
    func detach() {
        inbox = nil
        device.take()?.detached()
    }
}
