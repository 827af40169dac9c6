// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import HostUSB

/// libusb on a loop that cannot watch any more.
struct LibUSBContextTests {
    @Test func `a loop that watches nothing more refuses libusb, which is ended once`() {
        let loop = ManualLoop()
        loop.limit = 0
        #expect(throws: LibUSBError.noMemory) { _ = try LibUSBContext(loop: loop) }
    }
}
