// SPDX-License-Identifier: Apache-2.0

/// The codes of the descriptors that this module builds (USB 2.0, table 9-5; USB 3.2, table 9-6).
public struct DescriptorType: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    public static let device = DescriptorType(rawValue: 1)
    public static let configuration = DescriptorType(rawValue: 2)
    public static let string = DescriptorType(rawValue: 3)
    public static let interface = DescriptorType(rawValue: 4)
    public static let endpoint = DescriptorType(rawValue: 5)
    public static let deviceQualifier = DescriptorType(rawValue: 6)
    public static let otherSpeedConfiguration = DescriptorType(rawValue: 7)
    /// BOS: the store of device capabilities.
    public static let binaryObjectStore = DescriptorType(rawValue: 15)
    public static let deviceCapability = DescriptorType(rawValue: 16)
    public static let superSpeedEndpointCompanion = DescriptorType(rawValue: 48)
}

/// The three numbers by which drivers recognise a device or an interface.
public struct USBClass: Hashable, Sendable {
    public var code: UInt8
    public var subclass: UInt8
    public var `protocol`: UInt8

    public init(_ code: UInt8, subclass: UInt8 = 0, protocol: UInt8 = 0) {
        self.code = code
        self.subclass = subclass
        self.protocol = `protocol`
    }

    /// The class is told by each interface.
    public static let perInterface = USBClass(0)
    /// Known to the vendor's driver only.
    public static let vendorSpecific = USBClass(0xff, subclass: 0xff, protocol: 0xff)
}

/// The standard device descriptor (USB 2.0, 9.6.1).
public struct DeviceDescriptor: Hashable, Sendable {
    /// `bcdUSB`: 0x0200 for high speed, 0x0300 and above for SuperSpeed.
    public var usbVersion: UInt16
    public var deviceClass: USBClass
    /// The packet size of endpoint 0 in bytes; SuperSpeed knows 512 only.
    public var maxPacketSize: Int
    public var vendor: UInt16
    public var product: UInt16
    /// `bcdDevice`.
    public var release: UInt16
    /// Indices of strings, which count from 1; 0 stands for none.
    public var manufacturerString: UInt8
    public var productString: UInt8
    public var serialNumberString: UInt8

    /// A descriptor whose strings are the first three, in the order of its fields.
    public init(
        usbVersion: UInt16, deviceClass: USBClass = .perInterface, maxPacketSize: Int,
        vendor: UInt16, product: UInt16, release: UInt16 = 0x0100,
        manufacturerString: UInt8 = 1, productString: UInt8 = 2, serialNumberString: UInt8 = 3
    ) {
        self.usbVersion = usbVersion
        self.deviceClass = deviceClass
        self.maxPacketSize = maxPacketSize
        self.vendor = vendor
        self.product = product
        self.release = release
        self.manufacturerString = manufacturerString
        self.productString = productString
        self.serialNumberString = serialNumberString
    }

    /// The 18 bytes of the wire for a device with `configurationCount` configurations.
    func bytes(configurationCount: Int) -> [UInt8] {
        .descriptor(.device) {
            $0.append(usbVersion)
            $0.append(deviceClass)
            $0.append(encodedMaxPacketSize)
            $0.append(vendor)
            $0.append(product)
            $0.append(release)
            $0.append(manufacturerString)
            $0.append(productString)
            $0.append(serialNumberString)
            $0.append(UInt8(clamping: configurationCount))
        }
    }

    /// What the device would say of itself at its other speed (USB 2.0, 9.6.2).
    func qualifier(configurationCount: Int) -> [UInt8] {
        .descriptor(.deviceQualifier) {
            $0.append(usbVersion)
            $0.append(deviceClass)
            $0.append(encodedMaxPacketSize)
            $0.append(UInt8(clamping: configurationCount))
            $0.append(UInt8(0))
        }
    }

    /// From USB 3.0 on the field holds the exponent.
    private var encodedMaxPacketSize: UInt8 {
        usbVersion >= 0x0300
            ? UInt8(maxPacketSize.trailingZeroBitCount) : UInt8(clamping: maxPacketSize)
    }
}

/// A configuration with all that belongs to it (USB 2.0, 9.6.3).
public struct ConfigurationDescriptor: Hashable, Sendable {
    /// `bConfigurationValue`, not 0.
    public var value: UInt8
    public var string: UInt8
    public var isSelfPowered: Bool
    public var supportsRemoteWakeup: Bool
    /// What the device draws from the bus.
    public var milliamperes: Int
    /// In the order of the wire: the settings of one interface follow each other.
    public var interfaces: [InterfaceDescriptor]

    public init(
        value: UInt8 = 1, string: UInt8 = 0, isSelfPowered: Bool = false,
        supportsRemoteWakeup: Bool = false, milliamperes: Int = 100,
        interfaces: [InterfaceDescriptor]
    ) {
        precondition(value != 0, "configuration 0 means 'not configured'")
        self.value = value
        self.string = string
        self.isSelfPowered = isSelfPowered
        self.supportsRemoteWakeup = supportsRemoteWakeup
        self.milliamperes = milliamperes
        self.interfaces = interfaces
    }

    /// The descriptor and all that follow it. The unit of the current is 2 mA, at SuperSpeed 8 mA.
    func bytes(as type: DescriptorType = .configuration, superSpeed: Bool) -> [UInt8] {
        var attributes: UInt8 = 0x80
        if isSelfPowered { attributes |= 0x40 }
        if supportsRemoteWakeup { attributes |= 0x20 }
        let unit = superSpeed ? 8 : 2
        let inner = interfaces.flatMap { $0.bytes(superSpeed: superSpeed) }
        let total = UInt16(clamping: 9 + inner.count)
        let header: [UInt8] = .descriptor(type) {
            $0.append(total)
            $0.append(UInt8(clamping: Set(interfaces.map(\.number)).count))
            $0.append(value)
            $0.append(string)
            $0.append(attributes)
            $0.append(UInt8(clamping: (milliamperes + unit - 1) / unit))
        }
        return header + inner
    }
}

/// One setting of an interface (USB 2.0, 9.6.5).
public struct InterfaceDescriptor: Hashable, Sendable {
    public var number: UInt8
    public var alternateSetting: UInt8
    public var interfaceClass: USBClass
    public var string: UInt8
    /// Class descriptors, which stand between the interface and its endpoints.
    public var classDescriptors: [UInt8]
    public var endpoints: [EndpointDescriptor]

    public init(
        number: UInt8 = 0, alternateSetting: UInt8 = 0, interfaceClass: USBClass,
        string: UInt8 = 0, classDescriptors: [UInt8] = [], endpoints: [EndpointDescriptor]
    ) {
        self.number = number
        self.alternateSetting = alternateSetting
        self.interfaceClass = interfaceClass
        self.string = string
        self.classDescriptors = classDescriptors
        self.endpoints = endpoints
    }

    func bytes(superSpeed: Bool) -> [UInt8] {
        let header: [UInt8] = .descriptor(.interface) {
            $0.append(number)
            $0.append(alternateSetting)
            $0.append(UInt8(clamping: endpoints.count))
            $0.append(interfaceClass)
            $0.append(string)
        }
        return header + classDescriptors + endpoints.flatMap { $0.bytes(superSpeed: superSpeed) }
    }
}

/// An endpoint, at SuperSpeed with its companion (USB 2.0, 9.6.6; USB 3.2, 9.6.7).
public struct EndpointDescriptor: Hashable, Sendable {
    /// `bmAttributes` bits 1:0.
    public enum TransferType: UInt8, Sendable {
        case control = 0
        case isochronous = 1
        case bulk = 2
        case interrupt = 3
    }

    public var address: EndpointAddress
    public var transferType: TransferType
    /// `wMaxPacketSize`: the bytes of a packet, with the additional transactions in bits 12:11.
    public var maxPacketSize: UInt16
    /// `bInterval`, in the unit of the speed.
    public var interval: UInt8
    /// Written at SuperSpeed only, where every endpoint has one.
    public var companion: SuperSpeedCompanion
    /// Class descriptors, which come last.
    public var classDescriptors: [UInt8]

    public init(
        _ address: EndpointAddress, _ transferType: TransferType, maxPacketSize: UInt16,
        interval: UInt8 = 0, companion: SuperSpeedCompanion = .init(),
        classDescriptors: [UInt8] = []
    ) {
        self.address = address
        self.transferType = transferType
        self.maxPacketSize = maxPacketSize
        self.interval = interval
        self.companion = companion
        self.classDescriptors = classDescriptors
    }

    func bytes(superSpeed: Bool) -> [UInt8] {
        let endpoint: [UInt8] = .descriptor(.endpoint) {
            $0.append(address.rawValue)
            $0.append(transferType.rawValue)
            $0.append(maxPacketSize)
            $0.append(interval)
        }
        return endpoint + (superSpeed ? companion.bytes : []) + classDescriptors
    }
}

/// The SuperSpeed endpoint companion descriptor (USB 3.2, 9.6.7).
public struct SuperSpeedCompanion: Hashable, Sendable {
    /// Packets in a burst, 1...16.
    public var burst: Int
    /// `bmAttributes`: the exponent of the number of streams, or the multiplier of an isochronous
    /// endpoint.
    public var attributes: UInt8
    /// Periodic endpoints: the bytes of a service interval.
    public var bytesPerInterval: UInt16

    public init(burst: Int = 1, attributes: UInt8 = 0, bytesPerInterval: UInt16 = 0) {
        precondition((1...16).contains(burst), "a burst has 1 to 16 packets, not \(burst)")
        self.burst = burst
        self.attributes = attributes
        self.bytesPerInterval = bytesPerInterval
    }

    var bytes: [UInt8] {
        .descriptor(.superSpeedEndpointCompanion) {
            $0.append(UInt8(burst - 1))
            $0.append(attributes)
            $0.append(bytesPerInterval)
        }
    }
}

/// A capability in the binary device object store (USB 3.2, 9.6.2).
public enum DeviceCapability: Hashable, Sendable {
    /// USB 2.0 extension: whether the device knows link power management (L1).
    case usb2Extension(linkPowerManagement: Bool)
    /// What a SuperSpeed device can do: `wSpeedsSupported`, the lowest speed with full function, and
    /// the times in microseconds that it takes to leave U1 and U2.
    case superSpeed(
        speeds: UInt16, fullFunctionSpeed: UInt8, u1ExitLatency: UInt8, u2ExitLatency: UInt16)
    /// Any other: `bDevCapabilityType` and what follows it.
    case other(type: UInt8, bytes: [UInt8])

    var bytes: [UInt8] {
        .descriptor(.deviceCapability) {
            switch self {
            case .usb2Extension(let linkPowerManagement):
                $0.append(UInt8(2))
                $0 += [linkPowerManagement ? 2 : 0, 0, 0, 0]
            case .superSpeed(let speeds, let fullFunctionSpeed, let u1, let u2):
                $0.append(UInt8(3))
                $0.append(UInt8(0))
                $0.append(speeds)
                $0.append(fullFunctionSpeed)
                $0.append(u1)
                $0.append(u2)
            case .other(let type, let bytes):
                $0.append(type)
                $0 += bytes
            }
        }
    }

    static func objectStore(_ capabilities: [DeviceCapability]) -> [UInt8] {
        let inner = capabilities.flatMap(\.bytes)
        let header: [UInt8] = .descriptor(.binaryObjectStore) {
            $0.append(UInt16(clamping: 5 + inner.count))
            $0.append(UInt8(clamping: capabilities.count))
        }
        return header + inner
    }
}

/// Strings (USB 2.0, 9.6.7).
enum StringDescriptor {
    /// String 0: the languages, here English (United States) alone.
    static let languages: [UInt8] = .descriptor(.string) { $0.append(UInt16(0x0409)) }

    /// A text in UTF-16, cut between characters to the 126 units that a descriptor holds.
    static func bytes(_ text: String) -> [UInt8] {
        .descriptor(.string) { descriptor in
            for character in text {
                let units = String(character).utf16
                guard descriptor.count + 2 * units.count <= 254 else { return }
                for unit in units { descriptor.append(unit) }
            }
        }
    }
}

extension [UInt8] {
    /// A descriptor: its length, its type and what `body` appends.
    fileprivate static func descriptor(
        _ type: DescriptorType, _ body: (inout [UInt8]) -> Void
    ) -> [UInt8] {
        var bytes: [UInt8] = [0, type.rawValue]
        body(&bytes)
        bytes[0] = UInt8(clamping: bytes.count)
        return bytes
    }

    fileprivate mutating func append(_ value: UInt16) {
        append(UInt8(truncatingIfNeeded: value))
        append(UInt8(truncatingIfNeeded: value >> 8))
    }

    fileprivate mutating func append(_ usbClass: USBClass) {
        self += [usbClass.code, usbClass.subclass, usbClass.protocol]
    }
}
