// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

/// A device with two alternate settings of an interface.
func exampleDescription(speed: USBSpeed, remoteWakeup: Bool = true) -> DeviceDescription {
    let configuration = ConfigurationDescriptor(
        value: 3, string: 4, isSelfPowered: true, supportsRemoteWakeup: remoteWakeup,
        milliamperes: 100,
        interfaces: [
            InterfaceDescriptor(
                interfaceClass: USBClass(3, subclass: 1, protocol: 2),
                classDescriptors: [9, 0x21, 0x11, 0x01, 0, 1, 0x22, 0x3f, 0],
                endpoints: [
                    EndpointDescriptor(
                        EndpointAddress(1, .in), .interrupt, maxPacketSize: 8, interval: 4,
                        companion: SuperSpeedCompanion(bytesPerInterval: 8))
                ]),
            InterfaceDescriptor(
                number: 1, interfaceClass: .vendorSpecific,
                endpoints: [
                    EndpointDescriptor(EndpointAddress(2, .out), .bulk, maxPacketSize: 512)
                ]),
            InterfaceDescriptor(
                number: 1, alternateSetting: 1, interfaceClass: .vendorSpecific,
                endpoints: [
                    EndpointDescriptor(
                        EndpointAddress(3, .in), .bulk, maxPacketSize: 1024,
                        companion: SuperSpeedCompanion(burst: 16, attributes: 4))
                ]),
        ])
    let device = DeviceDescriptor(
        usbVersion: speed.isSuperSpeed ? 0x0320 : 0x0210,
        deviceClass: USBClass(0xef, subclass: 2, protocol: 1),
        maxPacketSize: speed.isSuperSpeed ? 512 : 64, vendor: 0x1234, product: 0xabcd,
        release: 0x0102)
    return DeviceDescription(
        speed: speed, device: device, configurations: [configuration],
        strings: ["maker", "Gerät €", "S/N"],
        capabilities: [
            .usb2Extension(linkPowerManagement: true),
            .superSpeed(
                speeds: 0x000e, fullFunctionSpeed: 1, u1ExitLatency: 10, u2ExitLatency: 0x07ff),
            .other(type: 4, bytes: [0, 1, 2]),
        ],
        otherSpeed: speed == .high ? .init(device: device, configurations: [configuration]) : nil)
}

@Suite struct DescriptorTests {
    let high = exampleDescription(speed: .high)
    let superSpeed = exampleDescription(speed: .superSpeed)

    @Test func `a device descriptor has the bytes of table 9-8`() {
        #expect(
            high.descriptor(.device, index: 0) == [
                18, 1,
                0x10, 0x02,  // bcdUSB
                0xef, 2, 1,  // class
                64,  // bMaxPacketSize0
                0x34, 0x12, 0xcd, 0xab, 0x02, 0x01,  // ids and release
                1, 2, 3,  // strings
                1,  // configurations
            ])
    }

    @Test func `at SuperSpeed the packet size of endpoint 0 is an exponent`() {
        #expect(superSpeed.descriptor(.device, index: 0)?[7] == 9)
    }

    @Test func `a configuration includes its interfaces, class descriptors and endpoints`() {
        #expect(
            high.descriptor(.configuration, index: 0) == [
                9, 2, 66, 0, 2, 3, 4, 0xe0, 50,
                9, 4, 0, 0, 1, 3, 1, 2, 0,
                9, 0x21, 0x11, 0x01, 0, 1, 0x22, 0x3f, 0,
                7, 5, 0x81, 3, 8, 0, 4,
                9, 4, 1, 0, 1, 0xff, 0xff, 0xff, 0,
                7, 5, 0x02, 2, 0x00, 0x02, 0,
                9, 4, 1, 1, 1, 0xff, 0xff, 0xff, 0,
                7, 5, 0x83, 2, 0x00, 0x04, 0,
            ])
    }

    @Test func `at SuperSpeed each endpoint has a companion and the unit of current is 8 mA`() {
        #expect(
            superSpeed.descriptor(.configuration, index: 0) == [
                9, 2, 84, 0, 2, 3, 4, 0xe0, 13,
                9, 4, 0, 0, 1, 3, 1, 2, 0,
                9, 0x21, 0x11, 0x01, 0, 1, 0x22, 0x3f, 0,
                7, 5, 0x81, 3, 8, 0, 4,
                6, 48, 0, 0, 8, 0,
                9, 4, 1, 0, 1, 0xff, 0xff, 0xff, 0,
                7, 5, 0x02, 2, 0x00, 0x02, 0,
                6, 48, 0, 0, 0, 0,
                9, 4, 1, 1, 1, 0xff, 0xff, 0xff, 0,
                7, 5, 0x83, 2, 0x00, 0x04, 0,
                6, 48, 15, 4, 0, 0,
            ])
    }

    @Test func `the BOS includes its capabilities`() {
        #expect(
            superSpeed.descriptor(.binaryObjectStore, index: 0) == [
                5, 15, 28, 0, 3,
                7, 16, 2, 2, 0, 0, 0,
                10, 16, 3, 0, 0x0e, 0, 1, 10, 0xff, 0x07,
                6, 16, 4, 0, 1, 2,
            ])
    }

    @Test func `a device with two speeds has a device qualifier and an other-speed configuration`()
    {
        #expect(
            high.descriptor(.deviceQualifier, index: 0) == [
                10, 6, 0x10, 0x02, 0xef, 2, 1, 64, 1, 0,
            ])
        #expect(
            high.descriptor(.otherSpeedConfiguration, index: 0)?.prefix(4) == [9, 7, 66, 0])
        #expect(high.descriptor(.otherSpeedConfiguration, index: 1) == nil)
        #expect(superSpeed.descriptor(.deviceQualifier, index: 0) == nil)
        #expect(superSpeed.descriptor(.otherSpeedConfiguration, index: 0) == nil)
    }

    @Test func `string 0 is the list of languages, others are UTF-16`() {
        #expect(high.descriptor(.string, index: 0) == [4, 3, 0x09, 0x04])
        #expect(
            high.descriptor(.string, index: 2) == [
                16, 3, 0x47, 0, 0x65, 0, 0x72, 0, 0xe4, 0, 0x74, 0, 0x20, 0, 0xac, 0x20,
            ])
        #expect(high.descriptor(.string, index: 4) == nil)
        #expect(high.descriptor(.string, index: 0xee) == nil)
    }

    @Test func `a long string is cut between characters to 126 units`() {
        var description = high
        description.strings = [
            String(repeating: "x", count: 126), String(repeating: "x", count: 127),
            String(repeating: "x", count: 125) + "😀",
        ]
        #expect(description.descriptor(.string, index: 1)?.count == 254)
        #expect(description.descriptor(.string, index: 2)?.count == 254)
        #expect(description.descriptor(.string, index: 3)?.count == 252)
    }

    @Test func `a device without strings and capabilities has no string 0 and no BOS`() {
        var description = high
        description.strings = []
        description.capabilities = []
        #expect(description.descriptor(.string, index: 0) == nil)
        #expect(description.descriptor(.binaryObjectStore, index: 0) == nil)
    }
}
