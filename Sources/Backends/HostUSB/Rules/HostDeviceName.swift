// SPDX-License-Identifier: Apache-2.0

/// The properties of a host device that rules compare and messages show.
struct HostDeviceName: Equatable, Sendable {
    var bus: UInt8
    var address: UInt8
    var vendor: UInt16
    var product: UInt16
    /// See ``LibUSBDevice/portPath``.
    var portPath = ""
    /// The string descriptors of manufacturer and product.
    var modelName: String?
    var serial: String?

    /// Reads the properties that never block: all but the string descriptors.
    init(withoutStrings device: LibUSBDevice) {
        self.init(
            bus: device.bus, address: device.address, vendor: device.vendor,
            product: device.product, portPath: device.portPath)
    }

    init(_ device: LibUSBDevice) { self = HostDeviceName(withoutStrings: device).addingStrings() }

    init(
        bus: UInt8, address: UInt8, vendor: UInt16, product: UInt16, portPath: String = "",
        modelName: String? = nil, serial: String? = nil
    ) {
        self.bus = bus
        self.address = address
        self.vendor = vendor
        self.product = product
        self.portPath = portPath
        self.modelName = modelName
        self.serial = serial
    }

    /// Adds the model name and the serial number. Blocks while a driver of the kernel starts on the
    /// device.
    func addingStrings() -> HostDeviceName {
        var name = self
        name.modelName = SystemFiles.modelName(of: portPath)
        name.serial = SystemFiles.attribute("serial", of: portPath)
        return name
    }

    /// The specification of the device at its present address.
    var specification: String { "\(DeviceRule.address(bus: bus, address: address))" }

    /// The rule for the device's port.
    var portRule: DeviceRule { .port(portPath) }

    /// The rule for the device in any port. Without a serial number it matches all devices of the
    /// kind.
    var idRule: DeviceRule { .ids(vendor: vendor, product: product, serial: serial) }

    /// Ids and model name, such as `46f4:0001 QEMU USB HARDDRIVE`.
    var displayName: String {
        "\(hex(vendor)):\(hex(product))" + (modelName.map { " \($0)" } ?? "")
    }

    var node: String { "/dev/bus/usb/\(padded(bus))/\(padded(address))" }

    /// A udev rule that permits the group `plugdev` to use devices of this kind.
    var udevRule: String {
        "SUBSYSTEM==\"usb\", ATTR{idVendor}==\"\(hex(vendor))\", "
            + "ATTR{idProduct}==\"\(hex(product))\", MODE=\"0660\", GROUP=\"plugdev\""
    }

    private func padded(_ number: UInt8) -> String {
        let digits = String(number)
        return String(repeating: "0", count: 3 - digits.count) + digits
    }
}
