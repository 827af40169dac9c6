// SPDX-License-Identifier: Apache-2.0

public import BackendKit
internal import Platform
internal import USB

/// A device of the host in the list of `usbvfiod devices`.
///
/// Control characters are removed from the device's strings.
public struct HostDeviceEntry: Equatable, Sendable {
    /// The bus number, as in `lsusb`.
    public let bus: UInt8
    /// The address on the bus, which `lsusb` calls "Device".
    public let address: UInt8
    /// `idVendor`, four hexadecimal digits.
    public let vendor: String
    /// `idProduct`, four hexadecimal digits.
    public let product: String
    /// The manufacturer's string descriptor.
    public let manufacturerName: String?
    /// The product's string descriptor.
    public let productName: String?
    /// The serial number's string descriptor.
    public let serial: String?
    /// The data rate, such as `480 Mb/s`; `nil` if it is unknown.
    public let speed: String?
    /// The names of the device's class or of its interfaces' classes, each once.
    public let classes: [String]
    /// Whether the device is a hub, which cannot be passed through.
    public let isHub: Bool
    /// The specifications that select the device: by port, then by ids if these match no other
    /// device. Empty for a hub.
    public let specifications: [String]
    /// The reason why this program cannot open the device, and what to do; `nil` if it can.
    public let obstacle: String?
}

/// The list of the host's devices, which is read without opening a device.
public enum HostDeviceList {
    /// The connected devices, by bus and address.
    public static func read() throws(BackendError) -> [HostDeviceEntry] {
        let devices = try nodes()
        let names = devices.map { HostDeviceName($0) }
        return zip(devices, names).map { device, name in
            HostDeviceEntry(
                bus: name.bus, address: name.address, vendor: hex(name.vendor),
                product: hex(name.product),
                manufacturerName: SystemFiles.attribute("manufacturer", of: name.portPath),
                productName: SystemFiles.attribute("product", of: name.portPath),
                serial: name.serial,
                speed: device.speed?.dataRate,
                classes: ClassNames.all(
                    device: device.deviceClass,
                    descriptors: SystemFiles.descriptors(of: name.portPath)),
                isHub: device.isHub,
                specifications: device.isHub ? [] : specifications(of: name, among: names),
                obstacle: device.isHub
                    ? nil
                    : SystemFiles.accessError(node: name.node).map {
                        Diagnosis.cannotOpen(name, $0).reason
                    })
        }
    }

    /// The devices that can be passed through.
    static func devices() throws(BackendError) -> [HostDeviceName] {
        try nodes().filter { !$0.isHub }.map { HostDeviceName($0) }
    }

    private static func nodes() throws(BackendError) -> [LibUSBDevice] {
        do {
            // The loop never runs: reading the list needs no events.
            return try LibUSBContext(loop: EpollLoop()).devices()
        } catch let error as LibUSBError {
            throw Diagnosis.noUSB(error)
        } catch {
            throw BackendError("libusb cannot be used on this host: \(error)")
        }
    }

    /// The rules that match this device and no other.
    static func specifications(
        of name: HostDeviceName, among all: [HostDeviceName]
    ) -> [String] {
        let byIDs: [DeviceRule] = [
            .ids(vendor: name.vendor, product: name.product, serial: nil), name.idRule,
        ]
        let unique = byIDs.first { rule in all.filter { rule.matches($0) }.count == 1 }
        // With a serial number the rule still matches this device alone when others are connected.
        let best = name.serial == nil ? unique : unique.map { _ in name.idRule }
        return ([name.portRule] + [best].compactMap(\.self)).map(\.description)
    }
}

/// Names of the USB classes (https://www.usb.org/defined-class-codes).
enum ClassNames {
    /// The names of a device's class, or of its interfaces' classes.
    static func all(device: UInt8, descriptors: [UInt8]) -> [String] {
        // 0 and "miscellaneous" refer to the interfaces.
        if device != 0 && device != 0xef { return [name(device)] }
        var found: [String] = []
        // Alternate settings may have other classes; the first one counts.
        var numbers: Set<UInt8> = []
        let interfaces = ConfigurationDescriptor.all(in: descriptors).first?.interfaces ?? []
        for interface in interfaces where numbers.insert(interface.number).inserted {
            let name = name(interface.interfaceClass.code)
            if !found.contains(name) { found.append(name) }
        }
        return found
    }

    private static func name(_ code: UInt8) -> String {
        switch code {
        case 0x01: "audio"
        case 0x02, 0x0a: "communication"
        case 0x03: "human interface"
        case 0x05: "physical interface"
        case 0x06: "imaging"
        case 0x07: "printer"
        case 0x08: "mass storage"
        case 0x09: "hub"
        case 0x0b: "smart card"
        case 0x0d: "content security"
        case 0x0e: "video"
        case 0x0f: "healthcare"
        case 0x10: "audio/video"
        case 0x11: "billboard"
        case 0x12: "Type-C bridge"
        case 0xdc: "diagnostic"
        case 0xe0: "wireless"
        case 0xef: "miscellaneous"
        case 0xfe: "application specific"
        case 0xff: "vendor specific"
        default: "class \(String(code, radix: 16))"
        }
    }
}

extension USBSpeed {
    /// The signalling rate.
    var dataRate: String {
        switch self {
        case .low: "1.5 Mb/s"
        case .full: "12 Mb/s"
        case .high: "480 Mb/s"
        case .superSpeed: "5 Gb/s"
        case .superSpeedPlus: "10 Gb/s"
        }
    }
}
