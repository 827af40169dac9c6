// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Testing
import USB

@testable import Loopback

/// The descriptors of the test device, and the settings that it accepts.
@Suite struct DescriptorTests {
    @Test func `a high-speed device has the descriptors of gadget zero`() throws {
        let host = try LoopbackHost()
        #expect(host.device.speed == .high)
        #expect(
            host.descriptor(0x0100) == [
                18, 1, 0x00, 0x02, 0xff, 0xff, 0xff, 64, 0x25, 0x05, 0xa0, 0xa4, 0x00, 0x01, 1, 2,
                3, 2,
            ])
        #expect(
            host.descriptor(0x0200) == [
                9, 2, 83, 0, 1, 3, 4, 0xc0, 1,
                9, 4, 0, 0, 2, 0xff, 0xff, 0xff, 0,
                7, 5, 0x81, 2, 0x00, 0x02, 0,
                7, 5, 0x01, 2, 0x00, 0x02, 0,
                9, 4, 0, 1, 6, 0xff, 0xff, 0xff, 0,
                7, 5, 0x81, 2, 0x00, 0x02, 0,
                7, 5, 0x01, 2, 0x00, 0x02, 0,
                7, 5, 0x82, 3, 0x00, 0x04, 4,
                7, 5, 0x02, 3, 0x00, 0x04, 4,
                7, 5, 0x83, 1, 0x00, 0x04, 4,
                7, 5, 0x03, 1, 0x00, 0x04, 4,
            ])
        #expect(host.descriptor(0x0201).count == 32)
        #expect(host.descriptor(0x0201)[5] == 2)
        // The qualifier and both configurations at full speed; no BOS before USB 2.1.
        #expect(host.descriptor(0x0600).count == 10)
        #expect(host.descriptor(0x0700)[22...23] == [64, 0])
        #expect(host.descriptor(0x0701)[5] == 2)
        #expect(host.descriptor(0x0f00).isEmpty)
    }

    @Test func `a full-speed device has no device qualifier and no BOS`() throws {
        let host = try LoopbackHost("loopback:speed=full")
        #expect(host.device.speed == .full)
        #expect(host.descriptor(0x0200)[22...23] == [64, 0])
        #expect(host.descriptor(0x0600).isEmpty)
        #expect(host.descriptor(0x0f00).isEmpty)
    }

    @Test func `a SuperSpeed device has a BOS and companions`() throws {
        let host = try LoopbackHost(
            "loopback:speed=super,bulk-burst=4,iso-burst=3,iso-mult=2,interrupt-packet=100")
        #expect(host.device.speed == .superSpeed)
        #expect(host.descriptor(0x0100)[2...7] == [0x00, 0x03, 0xff, 0xff, 0xff, 9])
        #expect(host.descriptor(0x0f00).count == 22)
        let configuration = host.descriptor(0x0200)
        #expect(configuration.count == 9 + 9 + 2 * 13 + 9 + 6 * 13)
        #expect(
            Array(configuration.suffix(6 * 13)) == [
                7, 5, 0x81, 2, 0x00, 0x04, 0, 6, 48, 3, 0, 0, 0,
                7, 5, 0x01, 2, 0x00, 0x04, 0, 6, 48, 3, 0, 0, 0,
                7, 5, 0x82, 3, 100, 0, 4, 6, 48, 0, 0, 100, 0,
                7, 5, 0x02, 3, 100, 0, 4, 6, 48, 0, 0, 100, 0,
                7, 5, 0x83, 1, 0x00, 0x04, 4, 6, 48, 2, 1, 0x00, 0x18,
                7, 5, 0x03, 1, 0x00, 0x04, 4, 6, 48, 2, 1, 0x00, 0x18,
            ])
    }

    @Test func `settings of endpoints appear in the descriptors`() throws {
        let host = try LoopbackHost(
            "loopback:interrupt-packet=8,interrupt-interval=7,iso-packet=700,iso-mult=3,"
                + "iso-interval=1,serial=ABC")
        #expect(
            Array(host.descriptor(0x0200).suffix(28)) == [
                7, 5, 0x82, 3, 8, 0, 7,
                7, 5, 0x02, 3, 8, 0, 7,
                7, 5, 0x83, 1, 0xbc, 0x12, 1,
                7, 5, 0x03, 1, 0xbc, 0x12, 1,
            ])
        #expect(host.descriptor(0x0303) == [8, 3, 0x41, 0, 0x42, 0, 0x43, 0])
    }

    private func reason(_ text: String) -> String {
        do {
            _ = try LoopbackSettings(DeviceSpecification(parsing: "loopback:" + text))
            return ""
        } catch {
            return error.reason
        }
    }

    @Test(arguments: [
        "speed=full,bulk-packet=8", "speed=full,bulk-packet=64", "speed=full,interrupt-packet=64",
        "speed=full,interrupt-interval=255", "speed=full,iso-packet=1023", "iso-packet=1024",
        "interrupt-packet=1024", "interrupt-interval=16", "iso-interval=16",
        "iso-mult=2,iso-packet=513", "iso-mult=3,iso-packet=683", "speed=super,bulk-burst=16",
        "speed=super,iso-burst=16,iso-mult=3", "speed=super,iso-packet=1", "bulk-burst=1",
    ])
    func `settings that USB allows are accepted`(text: String) { #expect(reason(text) == "") }

    @Test(arguments: [
        ("speed=low", "must be one of: full, high, super"),
        ("pattern=random", "must be one of: zero, mod63, none"),
        ("speed=full,bulk-packet=512", "not possible at full speed: 8, 16, 32, 64"),
        ("bulk-packet=64", "not possible at high speed: 512"),
        ("speed=super,bulk-packet=512", "not possible at super speed: 1024"),
        ("bulk-burst=2", "not possible at high speed: 1"),
        ("speed=super,bulk-burst=17", "not possible at super speed: 1 to 16"),
        ("speed=full,interrupt-packet=65", "not possible at full speed: 1 to 64"),
        ("interrupt-packet=1025", "not possible at high speed: 1 to 1024"),
        ("interrupt-packet=0", "not possible at high speed: 1 to 1024"),
        ("interrupt-interval=17", "not possible at high speed: 1 to 16"),
        ("speed=full,iso-packet=1024", "not possible at full speed: 1 to 1023"),
        ("speed=full,iso-mult=2", "not possible at full speed: 1"),
        ("iso-burst=2", "not possible at high speed: 1"),
        ("iso-mult=2,iso-packet=512", "needs an 'iso-packet' of at least 513"),
        ("iso-mult=3,iso-packet=682", "needs an 'iso-packet' of at least 683"),
        ("speed=super,iso-burst=2,iso-packet=512", "needs 'iso-packet=1024'"),
        ("speed=super,iso-mult=2", "needs an 'iso-burst' of at least 2"),
        ("iso-interval=0", "not possible at high speed: 1 to 16"),
        ("iso-packet=70000", "must be a number from 0 to 65535"),
    ])
    func `settings that USB forbids are refused, with the allowed values`(
        text: String, expected: String
    ) {
        #expect(reason(text).contains(expected), "\(reason(text))")
    }

    @Test func `a serial number has at most the 126 characters of a descriptor`() {
        #expect(reason("serial=" + String(repeating: "x", count: 126)) == "")
        #expect(
            reason("serial=" + String(repeating: "x", count: 127)).contains("at most 126"))
    }
}
