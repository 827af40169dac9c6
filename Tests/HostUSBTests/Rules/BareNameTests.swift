// SPDX-License-Identifier: Apache-2.0

import BackendKit
import HostUSB
import Testing

/// The device nodes of usbfs as names of devices.
struct BareNameTests {
    private let catalog = BackendCatalog(HostBackend.self)

    @Test func `a device node of usbfs stands for the device behind it`() throws {
        let (type, specification) = try catalog.resolve("/dev/bus/usb/001/004")
        #expect(type.scheme == "host")
        #expect(specification.text == "host:bus=1,address=4")
    }

    @Test(
        "paths that are no device node are refused",
        arguments: [
            "/dev/bus/usb/001", "/dev/bus/usb/001/004/5", "/dev/bus/usb/1/256", "/dev/bus/usb//4",
            "/dev/bus/usb/a/b", "/dev/bus/usb/",
        ])
    func wrongNode(path: String) {
        #expect(throws: BackendError.self) { try catalog.resolve(path) }
    }
}
