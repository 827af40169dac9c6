// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Testing
import USB

@testable import HostUSB

/// Rules in specifications, and the devices that they match.
struct DeviceRuleTests {
    private func rule(_ text: String) throws -> DeviceRule {
        try DeviceRule(DeviceSpecification(parsing: text))
    }

    private func refusal(_ text: String) -> String? {
        do {
            _ = try rule(text)
            return nil
        } catch {
            return (error as? BackendError)?.reason
        }
    }

    @Test(arguments: ["bus=1,address=4", "port=1-2", "vendor=0x46f4,product=1"])
    func `an id of the device is no part of the rule`(rule: String) throws {
        let named = try DeviceRule(DeviceSpecification(parsing: "host:\(rule),id=stick"))
        #expect(try named == DeviceRule(DeviceSpecification(parsing: "host:\(rule)")))
    }

    @Test func `a device is named by address, by port or by ids`() throws {
        #expect(try rule("host:bus=1,address=4") == .address(bus: 1, address: 4))
        #expect(try rule("host:port=1-2.3") == .port("1-2.3"))
        let ids = DeviceRule.ids(vendor: 0x46f4, product: 1, serial: nil)
        #expect(try rule("host:vendor=0x46f4,product=0x0001") == ids)
        #expect(
            try rule("host:product=1,serial=A 1,,x,vendor=46f4")
                == .ids(vendor: 0x46f4, product: 1, serial: "A 1,x"))
    }

    @Test func `ids are hexadecimal, as lsusb writes them`() throws {
        #expect(
            try rule("host:vendor=0627,product=0001")
                == .ids(vendor: 0x0627, product: 1, serial: nil))
    }

    @Test(arguments: ["", "0x", "g", "12345", "0x10000", "-1", "+1", "0x-1", "٣"])
    func `malformed ids are refused`(text: String) {
        #expect(refusal("host:vendor=\(text),product=1") != nil)
    }

    @Test(arguments: [
        "1", "1-", "-1", "1-2.", "1-.2", "1-2-3", "a-1", "1-2.x", "256-1", "1-256", "01-2", "1-0",
        "../1-2", "1-2 ", "usb1", "+1-2", "1-2/..",
    ])
    func `malformed ports are refused`(text: String) {
        #expect(refusal("host:port=\(text)")?.contains("is not a port") == true)
    }

    @Test(arguments: [
        "host", "host:bus=1", "host:address=4", "host:vendor=1", "host:product=1", "host:serial=x",
        "host:port=1-2,serial=x", "host:port=1-2,bus=1", "host:bus=1,address=4,vendor=1,product=2",
    ])
    func `half a rule and two rules are refused`(text: String) {
        #expect(refusal(text)?.contains("must name a device in one of these ways") == true)
    }

    @Test func `a serial number of spaces, which no device has, is refused`() {
        #expect(refusal("host:vendor=1,product=2,serial=  ")?.contains("spaces alone") == true)
    }

    private static let stick = HostDeviceName(
        bus: 1, address: 4, vendor: 0x46f4, product: 1, portPath: "1-2", serial: "A 1")

    @Test(arguments: [
        ("host:bus=1,address=4", true), ("host:bus=1,address=5", false),
        ("host:bus=2,address=4", false), ("host:port=1-2", true), ("host:port=1-2.1", false),
        ("host:vendor=46f4,product=1", true), ("host:vendor=46f4,product=2", false),
        ("host:vendor=46f5,product=1", false), ("host:vendor=46f4,product=1,serial=A 1", true),
        ("host:vendor=46f4,product=1,serial=A  1", true),
        ("host:vendor=46f4,product=1,serial=a 1", false),
    ])
    func `a rule matches devices`(text: String, isMatch: Bool) throws {
        #expect(try rule(text).matches(Self.stick) == isMatch)
    }

    @Test func `a rule's text is its specification`() throws {
        let rules = [
            DeviceRule.address(bus: 1, address: 4), .port("1-2.3"),
            .ids(vendor: 0xabcd, product: 0, serial: nil),
            .ids(vendor: 0xabcd, product: 0, serial: "a,b=c,,d \"e\""),
        ]
        for rule in rules { #expect(try self.rule("\(rule)") == rule) }
    }

    @Test func `rules about an address do not wait for a device`() throws {
        #expect(try !rule("host:bus=1,address=4").isPersistent)
        #expect(try rule("host:port=1-2").isPersistent)
        #expect(try rule("host:vendor=1,product=1").isPersistent)
    }

    // MARK: - The list of devices

    @Test func `the list has ids that match one device, with its serial number`() {
        let other = HostDeviceName(
            bus: 1, address: 5, vendor: 0x0627, product: 1, portPath: "1-3")
        let all = [Self.stick, other]
        #expect(
            HostDeviceList.specifications(of: Self.stick, among: all)
                == ["host:port=1-2", "host:vendor=0x46f4,product=0x0001,serial=A 1"])
        #expect(
            HostDeviceList.specifications(of: other, among: all)
                == ["host:port=1-3", "host:vendor=0x0627,product=0x0001"])
    }

    @Test func `equal devices are distinguished by serial number, or by port alone`() {
        var twin = Self.stick
        twin.portPath = "1-4"
        twin.serial = "B"
        #expect(
            HostDeviceList.specifications(of: twin, among: [Self.stick, twin])
                == ["host:port=1-4", "host:vendor=0x46f4,product=0x0001,serial=B"])
        twin.serial = Self.stick.serial
        #expect(
            HostDeviceList.specifications(of: twin, among: [Self.stick, twin])
                == ["host:port=1-4"])
    }
}
