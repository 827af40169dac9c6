// SPDX-License-Identifier: Apache-2.0

public import BackendKit
internal import Platform
internal import USB

/// A device of the host, as an operator who chooses one wants to see it.
///
/// Texts that come from the device have been rid of what plays with a terminal.
public struct HostDeviceEntry: Equatable, Sendable {
    public let bus: UInt8
    public let address: UInt8
    /// Four hexadecimal digits.
    public let vendor: String
    public let product: String
    /// What the device calls its maker, itself and this piece of it.
    public let manufacturerName: String?
    public let productName: String?
    public let serial: String?
    /// Such as `480 Mb/s`, if libusb knows it.
    public let speed: String?
    /// What kind of device it is, a word or two for each kind of interface.
    public let classes: [String]
    public let isHub: Bool
    /// What can stand behind `--device`: by place, then by ids where that means no other device.
    /// Nothing for a hub.
    public let specifications: [String]
    /// Why this program cannot open it, with what helps.
    public let obstacle: String?
}

/// What the host has, without opening anything.
public enum HostDeviceList {
    /// The devices that are plugged in now, in the order of bus and address.
    public static func read() throws(BackendError) -> [HostDeviceEntry] {
        let devices = try nodes()
        let names = devices.map { HostDeviceName($0) }
        return zip(devices, names).map { device, name in
            HostDeviceEntry(
                bus: name.bus, address: name.address, vendor: hex(name.vendor),
                product: hex(name.product),
                manufacturerName: SystemFiles.text("manufacturer", of: name.portPath),
                productName: SystemFiles.text("product", of: name.portPath), serial: name.serial,
                speed: device.speed?.words,
                classes: ClassWords.all(
                    device: device.deviceClass,
                    descriptors: SystemFiles.descriptors(of: name.portPath)),
                isHub: device.isHub,
                specifications: device.isHub ? [] : specifications(of: name, among: names),
                obstacle: device.isHub
                    ? nil
                    : SystemFiles.opening(node: name.node).map {
                        Diagnosis.cannotOpen(name, $0).reason
                    })
        }
    }

    /// The devices that can be passed on, by name.
    static func devices() throws(BackendError) -> [HostDeviceName] {
        try nodes().filter { !$0.isHub }.map { HostDeviceName($0) }
    }

    private static func nodes() throws(BackendError) -> [LibUSBDevice] {
        do {
            // Nothing is waited for, so nobody turns this loop.
            return try LibUSBContext(loop: EpollLoop()).devices()
        } catch let error as LibUSBError {
            throw Diagnosis.noUSB(error)
        } catch {
            throw BackendError("libusb cannot be used on this host: \(error)")
        }
    }

    /// The rules that mean this device and no other one.
    static func specifications(
        of name: HostDeviceName, among all: [HostDeviceName]
    ) -> [String] {
        let byIDs: [DeviceRule] = [
            .ids(vendor: name.vendor, product: name.product, serial: nil), name.idRule,
        ]
        let unique = byIDs.first { rule in all.filter { rule.means($0) }.count == 1 }
        // A serial number, where there is one, means this very device tomorrow, too.
        let best = name.serial == nil ? unique : unique.map { _ in name.idRule }
        return ([name.portRule] + [best].compactMap(\.self)).map(\.description)
    }
}

/// The classes of USB in a few words (https://www.usb.org/defined-class-codes).
enum ClassWords {
    /// Those of a device: its own, or what its interfaces are.
    static func all(device: UInt8, descriptors: [UInt8]) -> [String] {
        // 0 and "miscellaneous" leave it to the interfaces.
        if device != 0 && device != 0xef { return [word(device)] }
        var found: [String] = []
        for interface in ConfigurationOutline.all(in: descriptors).first?.interfaces ?? [] {
            let word = word(interface.usbClass.code)
            if !found.contains(word) { found.append(word) }
        }
        return found
    }

    private static func word(_ code: UInt8) -> String {
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
    /// As a data sheet has it.
    var words: String {
        switch self {
        case .low: "1.5 Mb/s"
        case .full: "12 Mb/s"
        case .high: "480 Mb/s"
        case .superSpeed: "5 Gb/s"
        case .superSpeedPlus: "10 Gb/s"
        }
    }
}
