// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The descriptors of the test device: the two configurations of Linux's gadget zero, and its IDs,
/// to which test drivers bind.
enum LoopbackDescriptors {
    static let vendor: UInt16 = 0x0525
    static let product: UInt16 = 0xa4a0

    /// `bConfigurationValue` of the configuration with sources and sinks. It is the first one,
    /// because hosts choose that.
    static let sourceSink: UInt8 = 3
    /// `bConfigurationValue` of the configuration that loops data back.
    static let loopback: UInt8 = 2

    static func description(_ settings: LoopbackSettings) -> DeviceDescription {
        let speed = settings.speed
        let device = DeviceDescriptor(
            usbVersion: speed == .super ? 0x0300 : 0x0200, deviceClass: .vendorSpecific,
            maxPacketSize: speed == .super ? 512 : 64, vendor: vendor, product: product)
        let slower = LoopbackSettings(.full)
        return DeviceDescription(
            speed: speed.speed, device: device, configurations: configurations(settings),
            strings: [
                "usbvfiod", "Loopback test device", settings.serial, "source and sink", "loopback",
            ],
            capabilities: speed == .super ? capabilities : [],
            otherSpeed: speed == .high
                ? .init(device: device, configurations: configurations(slower)) : nil)
    }

    /// The device supports full speed, high speed and SuperSpeed, and has full function at each.
    private static let capabilities: [DeviceCapability] = [
        .usb2Extension(linkPowerManagement: false),
        .superSpeed(speeds: 0x000e, fullFunctionSpeed: 1, u1ExitLatency: 0, u2ExitLatency: 0),
    ]

    private static func configurations(
        _ settings: LoopbackSettings
    ) -> [ConfigurationDescriptor] {
        let bulk = endpoints([.bulkIn, .bulkOut], settings)
        return [
            ConfigurationDescriptor(
                value: sourceSink, string: 4, isSelfPowered: true, milliamperes: 2,
                interfaces: [
                    InterfaceDescriptor(interfaceClass: .vendorSpecific, endpoints: bulk),
                    InterfaceDescriptor(
                        alternateSetting: 1, interfaceClass: .vendorSpecific,
                        endpoints: bulk
                            + endpoints(
                                [.interruptIn, .interruptOut, .isoIn, .isoOut], settings)),
                ]),
            ConfigurationDescriptor(
                value: loopback, string: 5, isSelfPowered: true, milliamperes: 2,
                interfaces: [InterfaceDescriptor(interfaceClass: .vendorSpecific, endpoints: bulk)]
            ),
        ]
    }

    private static func endpoints(
        _ pipes: [Pipe], _ settings: LoopbackSettings
    ) -> [EndpointDescriptor] {
        pipes.map { pipe in
            switch pipe {
            case .interruptIn, .interruptOut:
                EndpointDescriptor(
                    pipe.address, .interrupt, maxPacketSize: UInt16(settings.interruptPacket),
                    interval: UInt8(settings.interruptInterval),
                    companion: SuperSpeedCompanion(
                        bytesPerInterval: UInt16(settings.interruptPacket)))
            case .isoIn, .isoOut:
                EndpointDescriptor(
                    pipe.address, .isochronous, maxPacketSize: isoPacketField(settings),
                    interval: UInt8(settings.isoInterval),
                    companion: SuperSpeedCompanion(
                        burst: settings.isoBurst, attributes: UInt8(settings.isoMult - 1),
                        bytesPerInterval: UInt16(clamping: settings.isoBytesPerInterval)))
            default:
                EndpointDescriptor(
                    pipe.address, .bulk, maxPacketSize: UInt16(settings.bulkPacket),
                    companion: SuperSpeedCompanion(burst: settings.bulkBurst))
            }
        }
    }

    /// `wMaxPacketSize`. At high speed bits 12:11 are the additional transactions in a microframe.
    private static func isoPacketField(_ settings: LoopbackSettings) -> UInt16 {
        let additional = settings.speed == .high ? settings.isoMult - 1 : 0
        return UInt16(settings.isoPacket) | UInt16(additional) << 11
    }
}
