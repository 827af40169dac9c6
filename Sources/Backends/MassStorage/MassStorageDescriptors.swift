// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The descriptors of the device: one interface of the mass storage class (SCSI transparent,
/// Bulk-Only Transport) with a bulk endpoint in each direction. UAS is an alternate setting with
/// two more endpoints, the command and status pipes.
enum MassStorageDescriptors {
    static let inEndpoint = EndpointAddress(1, .in)
    static let outEndpoint = EndpointAddress(2, .out)
    static let statusEndpoint = EndpointAddress(3, .in)
    static let commandEndpoint = EndpointAddress(4, .out)

    /// `bAlternateSetting` of UAS.
    static let uasSetting: UInt8 = 1

    /// `idVendor` and `idProduct` of QEMU's emulated USB stick, for which no driver has quirks.
    private static let vendor: UInt16 = 0x46f4
    private static let product: UInt16 = 0x0001

    static func maxPacketSize(at speed: USBSpeed) -> Int { speed.isSuperSpeed ? 1024 : 512 }

    static func description(
        speed: USBSpeed, identity: InquiryIdentity, offersUAS: Bool
    ) -> DeviceDescription {
        let strings = [identity.vendor, identity.product, identity.serialNumber]
        if speed.isSuperSpeed {
            return DeviceDescription(
                speed: speed,
                device: DeviceDescriptor(
                    usbVersion: 0x0300, maxPacketSize: 512, vendor: vendor, product: product),
                configurations: [configuration(maxPacketSize: 1024, offersUAS: offersUAS)],
                strings: strings,
                capabilities: [
                    .usb2Extension(linkPowerManagement: false),
                    // High speed and SuperSpeed; fully functional from high speed on.
                    .superSpeed(
                        speeds: 0x000c, fullFunctionSpeed: 2, u1ExitLatency: 0, u2ExitLatency: 0),
                ])
        }
        let device = DeviceDescriptor(
            usbVersion: 0x0200, maxPacketSize: 64, vendor: vendor, product: product)
        return DeviceDescription(
            speed: speed, device: device,
            configurations: [configuration(maxPacketSize: 512, offersUAS: offersUAS)],
            strings: strings,
            otherSpeed: .init(
                device: device,
                configurations: [configuration(maxPacketSize: 64, offersUAS: offersUAS)]))
    }

    private static func configuration(
        maxPacketSize: UInt16, offersUAS: Bool
    ) -> ConfigurationDescriptor {
        let bulkOnly = InterfaceDescriptor(
            interfaceClass: USBClass(0x08, subclass: 0x06, protocol: 0x50),
            endpoints: [
                endpoint(inEndpoint, maxPacketSize, burst: 16),
                endpoint(outEndpoint, maxPacketSize, burst: 16),
            ])
        guard offersUAS else { return ConfigurationDescriptor(interfaces: [bulkOnly]) }
        let uas = InterfaceDescriptor(
            alternateSetting: uasSetting,
            interfaceClass: USBClass(0x08, subclass: 0x06, protocol: 0x62),
            endpoints: [
                endpoint(commandEndpoint, maxPacketSize, pipe: 1),
                endpoint(statusEndpoint, maxPacketSize, streams: true, pipe: 2),
                endpoint(inEndpoint, maxPacketSize, burst: 16, streams: true, pipe: 3),
                endpoint(outEndpoint, maxPacketSize, burst: 16, streams: true, pipe: 4),
            ])
        return ConfigurationDescriptor(interfaces: [bulkOnly, uas])
    }

    /// A bulk endpoint.
    ///
    /// - Parameter pipe: `bPipeID` of the pipe usage descriptor (UAS, 5.2.3.6).
    private static func endpoint(
        _ address: EndpointAddress, _ maxPacketSize: UInt16, burst: Int = 1,
        streams: Bool = false, pipe: UInt8? = nil
    ) -> EndpointDescriptor {
        let companion = SuperSpeedCompanion(
            burst: burst, attributes: streams ? MassStorageLimits.uasStreamsLog2 : 0)
        return EndpointDescriptor(
            address, .bulk, maxPacketSize: maxPacketSize, companion: companion,
            classDescriptors: pipe.map(pipeUsage) ?? [])
    }

    /// A pipe usage descriptor.
    private static func pipeUsage(_ pipe: UInt8) -> [UInt8] {
        DescriptorBuilder.bytes(of: DescriptorType(rawValue: 0x24)) {
            $0.append(pipe)
            $0.append(UInt8(0))
        }
    }
}
