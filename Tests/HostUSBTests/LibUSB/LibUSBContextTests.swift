// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import HostUSB

/// libusb's descriptors on the loop, and the observers of its devices.
struct LibUSBContextTests {
    @Test func `a context on a loop that watches no descriptors fails and is freed once`() {
        let loop = ManualLoop()
        loop.limit = 0
        #expect(throws: LibUSBError.noMemory) { _ = try LibUSBContext(loop: loop) }
    }

    @Test func `a descriptor that the loop cannot watch is tried again`() throws {
        let loop = ManualLoop()
        loop.limit = 1
        let context = try LibUSBContext(loop: loop)
        loop.advance(by: LibUSBContext.retryDelay)
        #expect(loop.watched == 1)
        loop.limit = .max
        loop.advance(by: LibUSBContext.retryDelay)
        let watched = loop.watched
        #expect(watched > 1)
        loop.advance(by: LibUSBContext.retryDelay * 2)
        #expect(loop.watched == watched)
        withExtendedLifetime(context) {}
    }
}
