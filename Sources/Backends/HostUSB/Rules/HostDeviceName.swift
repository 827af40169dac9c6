// SPDX-License-Identifier: Apache-2.0

/// A device of the host in the words of rules and messages.
struct HostDeviceName: Equatable, Sendable {
    var bus: UInt8
    var address: UInt8
    var vendor: UInt16
    var product: UInt16
    /// The name of its place; see ``LibUSBDevice/portPath``.
    var portPath = ""
    /// What the device calls itself.
    var words: String?
    var serial: String?

    /// What is known of it without asking the kernel for the device's own words.
    init(bare device: LibUSBDevice) {
        self.init(
            bus: device.bus, address: device.address, vendor: device.vendor,
            product: device.product, portPath: device.portPath)
    }

    init(_ device: LibUSBDevice) { self = HostDeviceName(bare: device).withWords() }

    init(
        bus: UInt8, address: UInt8, vendor: UInt16, product: UInt16, portPath: String = "",
        words: String? = nil, serial: String? = nil
    ) {
        self.bus = bus
        self.address = address
        self.vendor = vendor
        self.product = product
        self.portPath = portPath
        self.words = words
        self.serial = serial
    }

    /// With its name and serial number. The kernel lets this wait while a driver starts on the
    /// device.
    func withWords() -> HostDeviceName {
        var name = self
        name.words = SystemFiles.name(of: portPath)
        name.serial = SystemFiles.text("serial", of: portPath)
        return name
    }

    /// What is written behind `--device`.
    var specification: String { "\(DeviceRule.address(bus: bus, address: address))" }

    /// The rule for whatever is plugged in at its place.
    var portRule: DeviceRule { .port(portPath) }

    /// The rule for the device wherever it is plugged in, which is as good as its serial number.
    var idRule: DeviceRule { .ids(vendor: vendor, product: product, serial: serial) }

    /// `46f4:0001 QEMU USB HARDDRIVE`.
    var identity: String { "\(hex(vendor)):\(hex(product))" + (words.map { " \($0)" } ?? "") }

    var node: String { "/dev/bus/usb/\(padded(bus))/\(padded(address))" }

    /// The udev rule that lets a group use devices of this kind.
    var udevRule: String {
        "SUBSYSTEM==\"usb\", ATTR{idVendor}==\"\(hex(vendor))\", "
            + "ATTR{idProduct}==\"\(hex(product))\", MODE=\"0660\", GROUP=\"plugdev\""
    }

    private func padded(_ number: UInt8) -> String {
        let digits = String(number)
        return String(repeating: "0", count: 3 - digits.count) + digits
    }
}
