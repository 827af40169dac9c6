// SPDX-License-Identifier: Apache-2.0

internal import BackendKit

/// A device of the host in the words of messages.
struct HostDeviceName: Equatable {
    var bus: UInt8
    var address: UInt8
    var vendor: UInt16
    var product: UInt16
    /// What the device calls itself.
    var words: String?

    init(_ device: LibUSBDevice) {
        self.init(
            bus: device.bus, address: device.address, vendor: device.vendor,
            product: device.product, words: SystemFiles.name(of: device.portPath))
    }

    init(bus: UInt8, address: UInt8, vendor: UInt16, product: UInt16, words: String?) {
        self.bus = bus
        self.address = address
        self.vendor = vendor
        self.product = product
        self.words = words
    }

    /// What is written behind `--device`.
    var specification: String { "host:bus=\(bus),address=\(address)" }

    /// `46f4:0001 QEMU USB HARDDRIVE`.
    var identity: String { "\(hex(vendor)):\(hex(product))" + (words.map { " \($0)" } ?? "") }

    var node: String { "/dev/bus/usb/\(padded(bus))/\(padded(address))" }

    fileprivate func hex(_ number: UInt16) -> String {
        let digits = String(number, radix: 16)
        return String(repeating: "0", count: 4 - digits.count) + digits
    }

    private func padded(_ number: UInt8) -> String {
        let digits = String(number)
        return String(repeating: "0", count: 3 - digits.count) + digits
    }
}

/// Why a device cannot be passed through, with what the operator can do about it.
enum Diagnosis {
    static func noUSB(_ error: LibUSBError) -> BackendError {
        BackendError("libusb cannot be used on this host: \(error)")
    }

    static func noDevice(bus: UInt8, address: UInt8, of present: [HostDeviceName]) -> BackendError {
        guard !present.isEmpty else {
            return BackendError("no device \(bus):\(address); this host has no USB devices")
        }
        let list = present.map { "\n  \($0.specification)  \($0.identity)" }.joined()
        return BackendError("no device \(bus):\(address); this host has:\(list)")
    }

    static func hub(_ name: HostDeviceName) -> BackendError {
        BackendError(
            "\(name.specification) (\(name.identity)) is a hub, which stays with the host; "
                + "pass the devices behind it")
    }

    static func unknownSpeed(_ name: HostDeviceName) -> BackendError {
        BackendError("\(name.specification) (\(name.identity)) runs at a speed libusb cannot tell")
    }

    static func cannotOpen(_ name: HostDeviceName, _ error: LibUSBError) -> BackendError {
        let start = "cannot open \(name.node) (\(name.identity)): "
        switch error {
        case .access:
            return BackendError(
                start + "permission denied. Run as root, or write into "
                    + "/etc/udev/rules.d/70-usbvfiod.rules\n"
                    + "  SUBSYSTEM==\"usb\", ATTR{idVendor}==\"\(name.hex(name.vendor))\", "
                    + "ATTR{idProduct}==\"\(name.hex(name.product))\", "
                    + "MODE=\"0660\", GROUP=\"plugdev\"\n"
                    + "then run `udevadm control --reload && udevadm trigger` "
                    + "as a member of that group")
        case .noDevice:
            return BackendError(start + "it was unplugged, or the node is missing")
        default:
            return BackendError(start + "\(error)")
        }
    }

    static func nothingClaimed(
        _ name: HostDeviceName, problems: [String], holders: [String]
    ) -> BackendError {
        let who = holders.isEmpty ? "" : "; in use by \(holders.joined(separator: ", "))"
        return BackendError(
            "\(name.node) (\(name.identity)): \(problems.joined(separator: "; "))\(who)")
    }

    static func memoryLimit(_ count: Int) -> String {
        "a transfer of \(count) bytes is over the kernel's limit for USB transfers; raise "
            + "/sys/module/usbcore/parameters/usbfs_memory_mb (16 MiB unless set)"
    }
}
