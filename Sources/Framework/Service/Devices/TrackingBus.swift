// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The bus of one backend, which remembers the device that the backend has attached.
///
/// The reference is weak: a device that disconnects by itself is never detached from the bus.
final class TrackingBus: USBBus {
    private let bus: any USBBus
    private(set) weak var device: (any USBDevice)?

    init(_ bus: any USBBus) { self.bus = bus }

    func attach(_ device: any USBDevice) throws(AttachError) {
        try bus.attach(device)
        self.device = device
    }

    func detach(_ device: any USBDevice) {
        bus.detach(device)
        if self.device === device { self.device = nil }
    }
}
