// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

@testable import HostUSB

/// The control requests that reach the device, and those that the host's kernel executes.
struct RequestRouteTests {
    private func route(
        _ type: UInt8, _ request: UInt8, value: UInt16 = 0, index: UInt16 = 0, length: UInt16 = 0
    ) -> RequestRoute {
        RequestRoute(
            SetupPacket(
                requestType: type, request: request, value: value, index: index, length: length))
    }

    @Test func `reads and requests of classes and vendors go to the device`() {
        #expect(route(0x80, 6, value: 0x0100, length: 18) == .forward)
        #expect(route(0x82, 0, index: 0x81, length: 2) == .forward)
        #expect(route(0x21, 9, value: 0x0200, length: 1) == .forward)
        #expect(route(0x40, 9, value: 1) == .forward)
        #expect(route(0x41, 11, value: 1) == .forward)
    }

    @Test func `the kernel sets configuration and interface and clears halts`() {
        #expect(route(0, 9, value: 1) == .operate(.setConfiguration(1)))
        #expect(route(0, 9, value: 0) == .operate(.setConfiguration(0)))
        #expect(route(1, 11, value: 2, index: 3) == .operate(.setInterface(3, setting: 2)))
        #expect(route(2, 1, index: 0x81) == .operate(.clearHalt(EndpointAddress(1, .in))))
        #expect(route(2, 1, index: 0x02) == .operate(.clearHalt(EndpointAddress(2, .out))))
    }

    @Test func `the control endpoint's halt and other features go to the device`() {
        #expect(route(2, 1, index: 0) == .forward)
        #expect(route(2, 1, index: 0x80) == .forward)
        #expect(route(0, 3, value: 1) == .forward)
        #expect(route(0, 1, value: 1) == .forward)
        #expect(route(2, 3, value: 0, index: 0x81) == .forward)
    }

    @Test func `requests about the link are acknowledged`() {
        #expect(route(0, 5, value: 7) == .acknowledge)
        for feature in 48...50 as ClosedRange<UInt16> {
            #expect(route(0, 3, value: feature) == .acknowledge)
            #expect(route(0, 1, value: feature) == .acknowledge)
        }
        #expect(route(0, 48, length: 6) == .acknowledge)
        #expect(route(0, 49, value: 40) == .acknowledge)
    }

    @Test func `malformed forms of intercepted requests are refused`() {
        #expect(route(0x80, 9, value: 1) == .refuse)
        #expect(route(1, 9, value: 1) == .refuse)
        #expect(route(0, 9, value: 0x100) == .refuse)
        #expect(route(0, 9, value: 1, length: 1) == .refuse)
        #expect(route(0, 11, value: 1) == .refuse)
        #expect(route(1, 11, value: 0x100, index: 0) == .refuse)
        #expect(route(1, 11, value: 0, index: 0x100) == .refuse)
        #expect(route(0x82, 1, index: 0x81) == .refuse)
        #expect(route(2, 1, index: 0x81, length: 2) == .refuse)
        #expect(route(2, 5, value: 1) == .refuse)
        #expect(route(0x80, 48, length: 6) == .refuse)
    }

    @Test func `test mode is refused`() {
        #expect(route(0, 3, value: 2, index: 0x0400) == .refuse)
    }
}
