// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Testing
import USB

@testable import HostUSB

/// How a device of the host is named, and which one is meant.
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
    func `a device may be given a name whatever the rule`(rule: String) throws {
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
    func `what is no id is refused`(text: String) {
        #expect(refusal("host:vendor=\(text),product=1") != nil)
    }

    @Test(arguments: [
        "1", "1-", "-1", "1-2.", "1-.2", "1-2-3", "a-1", "1-2.x", "256-1", "1-256", "01-2", "1-0",
        "../1-2", "1-2 ", "usb1", "+1-2", "1-2/..",
    ])
    func `what is no port is refused`(text: String) {
        #expect(refusal("host:port=\(text)")?.contains("is not a port") == true)
    }

    @Test(arguments: [
        "host", "host:bus=1", "host:address=4", "host:vendor=1", "host:product=1", "host:serial=x",
        "host:port=1-2,serial=x", "host:port=1-2,bus=1", "host:bus=1,address=4,vendor=1,product=2",
    ])
    func `half a name and two names are refused`(text: String) {
        #expect(refusal(text)?.contains("must name a device in one of these ways") == true)
    }

    @Test func `a serial number of spaces is refused, as it would be waited for in vain`() {
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
    func `a rule means what it says`(text: String, means: Bool) throws {
        #expect(try rule(text).means(Self.stick) == means)
    }

    @Test func `a rule's text is a specification of it`() throws {
        let rules = [
            DeviceRule.address(bus: 1, address: 4), .port("1-2.3"),
            .ids(vendor: 0xabcd, product: 0, serial: nil),
            .ids(vendor: 0xabcd, product: 0, serial: "a,b=c,,d \"e\""),
        ]
        for rule in rules { #expect(try self.rule("\(rule)") == rule) }
    }

    @Test func `rules about an address do not wait`() throws {
        #expect(try !rule("host:bus=1,address=4").isLasting)
        #expect(try rule("host:port=1-2").isLasting)
        #expect(try rule("host:vendor=1,product=1").isLasting)
    }

    // MARK: - The list of what there is

    @Test func `ids stand in the list where they mean one device, with the serial number`() {
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

    @Test func `equal devices are told apart by serial number, or by port alone`() {
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

/// Descriptors of devices that tell the truth, and of others.
struct DescriptorOutlineTests {
    private static let device: [UInt8] = [
        18, 1, 0, 2, 0, 0, 0, 64, 0xf4, 0x46, 1, 0, 0, 1, 1, 2, 3, 1,
    ]

    private static func configuration(_ value: UInt8, total: UInt16 = 9) -> [UInt8] {
        [9, 2, UInt8(truncatingIfNeeded: total), UInt8(total >> 8), 1, value, 0, 0x80, 50]
    }

    private static func interface(_ number: UInt8, _ setting: UInt8 = 0, code: UInt8 = 8) -> [UInt8]
    { [9, 4, number, setting, 2, code, 6, 0x50, 0] }

    private static let endpoint: [UInt8] = [7, 5, 0x81, 2, 0, 2, 0]

    private func numbers(_ bytes: [UInt8]) -> [[UInt8]] {
        ConfigurationOutline.all(in: bytes).map { $0.interfaces.map(\.number) }
    }

    @Test func `interfaces are found in each configuration`() {
        let found = ConfigurationOutline.all(
            in: Self.device + Self.configuration(1) + Self.interface(0) + Self.endpoint
                + Self.interface(0, 1) + Self.interface(1, code: 3) + Self.configuration(2)
                + Self.interface(5))
        #expect(found.map(\.value) == [1, 2])
        #expect(found.first?.interfaces.map(\.number) == [0, 1])
        #expect(found.first?.interfaces.map(\.usbClass.code) == [8, 3])
        #expect(found.last?.interfaces.map(\.number) == [5])
    }

    @Test func `no bytes and no configuration are no interfaces`() {
        #expect(numbers([]) == [])
        #expect(numbers(Self.device) == [])
        #expect(numbers(Self.interface(0)) == [])
        #expect(numbers(Self.configuration(1)) == [[]])
    }

    @Test(arguments: [0, 1] as [UInt8])
    func `a length that leads nowhere ends the walk`(length: UInt8) {
        #expect(
            numbers(Self.configuration(1) + Self.interface(0) + [length, 4] + Self.interface(1))
                == [[0]])
    }

    @Test func `a descriptor longer than what is there is not read`() {
        #expect(numbers(Self.configuration(1) + [255, 4, 1, 0, 0, 8, 6, 0x50, 0]) == [[]])
        for length in 0..<9 {
            #expect(numbers(Self.configuration(1) + Self.interface(0).prefix(length)) == [[]])
        }
    }

    @Test func `descriptors that are too short for their type are passed over`() {
        #expect(
            numbers(
                [3, 2, 1] + Self.configuration(1) + [4, 4, 7, 0] + [2, 5] + Self.interface(3))
                == [[3]])
    }

    @Test func `the length of the whole is not believed`() {
        for total in [0, 9, 0xffff] as [UInt16] {
            #expect(numbers(Self.configuration(1, total: total) + Self.interface(0)) == [[0]])
        }
    }

    @Test func `interfaces and configurations have a bound`() {
        let interfaces = (0...255 as ClosedRange<UInt8>).flatMap { Self.interface($0) }
        #expect(
            ConfigurationOutline.all(in: Self.configuration(1) + interfaces).first?.interfaces.count
                == ConfigurationOutline.mostInterfaces)
        let configurations = (0...255 as ClosedRange<UInt8>).flatMap { Self.configuration($0) }
        #expect(
            ConfigurationOutline.all(in: configurations).count
                == ConfigurationOutline.mostConfigurations)
    }

    @Test(arguments: 0..<64 as Range<UInt64>)
    func `no bytes trap`(seed: UInt64) {
        // A small generator suffices: each step is a descriptor's header or what stands for one.
        var state = seed &* 0x9e37_79b9_7f4a_7c15 &+ 1
        let bytes = (0..<2048).map { _ in
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return UInt8(truncatingIfNeeded: state >> 32) & (seed & 1 == 0 ? 0xff : 0x0f)
        }
        for configuration in ConfigurationOutline.all(in: Self.device + bytes) {
            #expect(configuration.interfaces.count <= ConfigurationOutline.mostInterfaces)
        }
    }

    @Test func `a device's kind is its own or that of its interfaces`() {
        let bytes =
            Self.device + Self.configuration(1) + Self.interface(0, code: 1)
            + Self.interface(1, code: 1) + Self.interface(2, code: 3)
        #expect(ClassWords.all(device: 0, descriptors: bytes) == ["audio", "human interface"])
        #expect(ClassWords.all(device: 9, descriptors: bytes) == ["hub"])
        #expect(ClassWords.all(device: 0x42, descriptors: []) == ["class 42"])
    }
}
