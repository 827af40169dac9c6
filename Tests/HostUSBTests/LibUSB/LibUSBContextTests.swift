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

    @Test func `what the loop cannot watch is watched when it can`() throws {
        let loop = ManualLoop()
        loop.limit = 1
        let context = try LibUSBContext(loop: loop)
        loop.advance(by: LibUSBContext.retryStep)
        #expect(loop.watched == 1)
        loop.limit = .max
        loop.advance(by: LibUSBContext.retryStep)
        let watched = loop.watched
        #expect(watched > 1)
        loop.advance(by: LibUSBContext.retryStep * 2)
        #expect(loop.watched == watched)
        withExtendedLifetime(context) {}
    }
}
