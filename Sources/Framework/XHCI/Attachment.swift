// SPDX-License-Identifier: Apache-2.0

internal import USB

/// One device plugged into one port: what the device knows of the controller.
///
/// Each plugging-in makes a new one, so what a device says after it was unplugged reaches nobody.
/// Everything that a device says is only noted here; the next service acts on it.
final class Attachment: USBPort {
    let device: any USBDevice
    let portIndex: Int
    private weak var controller: Controller?
    private var inbox: [Transfer.Completion] = []

    init(_ device: any USBDevice, portIndex: Int, controller: Controller) {
        self.device = device
        self.portIndex = portIndex
        self.controller = controller
    }

    func complete(_ completion: Transfer.Completion) {
        guard let controller else { return }
        if inbox.isEmpty { controller.noteCompletions(of: self) }
        inbox.append(completion)
    }

    func disconnect() { controller?.noteRequest(.detach(self)) }

    func wake() { controller?.noteRequest(.wake(self)) }

    /// Takes what the device has completed since the last time.
    func takeCompletions() -> [Transfer.Completion] {
        let all = inbox
        inbox.removeAll(keepingCapacity: true)
        return all
    }

    /// No more is heard of the device.
    func close() {
        controller = nil
        inbox = []
    }
}
