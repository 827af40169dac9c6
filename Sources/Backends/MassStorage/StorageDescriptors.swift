// SPDX-License-Identifier: Apache-2.0

internal import USB

/// What a stick says of itself over USB: one interface of the mass storage class, SCSI transparent,
/// bulk-only, with a bulk endpoint in each direction.
enum StorageDescriptors {
    static let inEndpoint = EndpointAddress(1, .in)
    static let outEndpoint = EndpointAddress(2, .out)

    /// QEMU's numbers for an emulated stick: drivers know no quirks for them.
    private static let vendor: UInt16 = 0x46f4
    private static let product: UInt16 = 0x0001

    static func maxPacketSize(at speed: USBSpeed) -> Int { speed.isSuperSpeed ? 1024 : 512 }

    static func description(
        speed: USBSpeed, identity: LogicalUnit.Identity
    ) -> DeviceDescription {
        let strings = [identity.vendor, identity.product, identity.serialNumber]
        if speed.isSuperSpeed {
            return DeviceDescription(
                speed: speed,
                device: DeviceDescriptor(
                    usbVersion: 0x0300, maxPacketSize: 512, vendor: vendor, product: product),
                configurations: [configuration(maxPacketSize: 1024)],
                strings: strings,
                capabilities: [
                    .usb2Extension(linkPowerManagement: false),
                    // High speed and SuperSpeed; full function from high speed on.
                    .superSpeed(
                        speeds: 0x000c, fullFunctionSpeed: 2, u1ExitLatency: 0, u2ExitLatency: 0),
                ])
        }
        let device = DeviceDescriptor(
            usbVersion: 0x0200, maxPacketSize: 64, vendor: vendor, product: product)
        return DeviceDescription(
            speed: speed, device: device, configurations: [configuration(maxPacketSize: 512)],
            strings: strings,
            otherSpeed: .init(device: device, configurations: [configuration(maxPacketSize: 64)]))
    }

    private static func configuration(maxPacketSize: UInt16) -> ConfigurationDescriptor {
        let companion = SuperSpeedCompanion(burst: 16)
        return ConfigurationDescriptor(interfaces: [
            InterfaceDescriptor(
                interfaceClass: USBClass(0x08, subclass: 0x06, protocol: 0x50),
                endpoints: [
                    EndpointDescriptor(
                        inEndpoint, .bulk, maxPacketSize: maxPacketSize, companion: companion),
                    EndpointDescriptor(
                        outEndpoint, .bulk, maxPacketSize: maxPacketSize, companion: companion),
                ])
        ])
    }
}
