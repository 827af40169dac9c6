// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import Glibc
internal import Platform
internal import USB

/// What the kernel's file systems tell of USB devices beyond libusb: names and who uses what.
enum SystemFiles {
    /// More than any honest device has; what lies behind it is not looked at.
    private static let longestDescriptors = 0x40000

    /// The driver that an interface is bound to, `usbfs` for another program's.
    static func driver(
        ofInterface number: UInt8, of portPath: String, devices: String = "/sys/bus/usb/devices"
    ) -> String? {
        for configuration in 1...8 {
            let path = "\(devices)/\(portPath):\(configuration).\(number)/driver"
            if let target = link(path) { return target.split(separator: "/").last.map(String.init) }
        }
        return nil
    }

    /// Manufacturer and product, as far as the device has names.
    static func name(
        of portPath: String, devices: String = "/sys/bus/usb/devices"
    ) -> String? {
        let words = ["manufacturer", "product"].compactMap {
            text($0, of: portPath, devices: devices)
        }
        return words.isEmpty ? nil : words.joined(separator: " ")
    }

    /// One of the texts that the kernel has of a device, such as `serial`.
    static func text(
        _ attribute: String, of portPath: String, devices: String = "/sys/bus/usb/devices"
    ) -> String? {
        line("\(devices)/\(portPath)/\(attribute)")
    }

    /// A speed that libusb may not know: that of two lanes, in Mb/s.
    static func speed(
        of portPath: String, devices: String = "/sys/bus/usb/devices"
    ) -> USBSpeed? {
        text("speed", of: portPath, devices: devices) == "20000" ? .superSpeedPlus : nil
    }

    /// The descriptors of a device and of its configurations, as the kernel has read them.
    static func descriptors(
        of portPath: String, devices: String = "/sys/bus/usb/devices"
    ) -> [UInt8] {
        contents("\(devices)/\(portPath)/descriptors", limit: longestDescriptors)
    }

    /// What opening a device's node would answer now.
    static func opening(node: String) -> LibUSBError? {
        if unsafe faccessat(AT_FDCWD, node, R_OK | W_OK, AT_EACCESS) == 0 { return nil }
        return error(errno)
    }

    /// Opens a device node as libusb does.
    static func openNode(_ node: String) throws(LibUSBError) -> OwnedDescriptor {
        let number = unsafe Glibc.open(node, O_RDWR | O_CLOEXEC | O_NOCTTY)
        guard number >= 0 else { throw error(errno) }
        return OwnedDescriptor(owning: number)
    }

    /// Bytes of the longest bulk transfer that libusb submits as one request to usbfs. This may wait
    /// for the lock that the kernel's drivers hold while they start.
    ///
    /// libusb cuts longer transfers into requests of 16 KiB where the host's controller has no
    /// scatter-gather lists. When such a transfer ends early, libusb may move data within its buffer,
    /// OUT data as well, so that buffer must not be the guest's.
    static func longestRequest(of descriptor: CInt) -> Int {
        usbvfiod_usbfs_capabilities(descriptor) & UInt32(USBDEVFS_CAP_BULK_SCATTER_GATHER) != 0
            ? .max : 0x4000
    }

    private static func error(_ number: CInt) -> LibUSBError {
        switch number {
        case ENOENT: .noDevice
        case EACCES, EPERM: .access
        default: .other
        }
    }

    /// Whether udev's daemon runs, from which libusb mostly hears of devices that come.
    static var hasUdev: Bool { unsafe access("/run/udev/control", F_OK) == 0 }

    /// Waits until the kernel's own drivers have started on a device that was just plugged in:
    /// opening its node takes the lock that they hold.
    static func settle(_ node: String) {
        let descriptor = unsafe open(node, O_RDWR | O_CLOEXEC)
        if descriptor >= 0 { close(descriptor) }
    }

    /// The programs that have a device node open, such as `qemu (process 812)`; without the rights
    /// of root those of other users are not seen.
    static func holders(ofNode node: String, processes: String = "/proc") -> [String] {
        var holders: [String] = []
        for process in entries(processes).compactMap({ CInt($0) }).sorted()
        where process != getpid() {
            let directory = "\(processes)/\(process)/fd"
            if entries(directory).contains(where: { link("\(directory)/\($0)") == node }) {
                let name = line("\(processes)/\(process)/comm") ?? "a program"
                holders.append("\(name) (process \(process))")
            }
        }
        return holders
    }

    /// The target of a symbolic link.
    private static func link(_ path: String) -> String? {
        var target = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = unsafe readlink(path, &target, target.count)
        guard count > 0 else { return nil }
        return String(decoding: target[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// The first line of a small file. A device chooses its own names, so what could play with a
    /// terminal is left out.
    static func line(_ path: String) -> String? {
        let content = String(decoding: contents(path, limit: 512), as: UTF8.self)
        let line = content.prefix { !$0.isNewline }.unicodeScalars.filter { scalar in
            scalar.properties.generalCategory != .control
                && scalar.properties.generalCategory != .format
        }
        let text = words(String(String.UnicodeScalarView(line)))
        return text.isEmpty ? nil : text
    }

    /// The beginning of a file; nothing of one that cannot be read.
    private static func contents(_ path: String, limit: Int) -> [UInt8] {
        let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return [] }
        defer { close(descriptor) }
        var content: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 4096)
        while content.count < limit {
            let count = unsafe piece.withUnsafeMutableBytes { bytes in
                unsafe read(descriptor, bytes.baseAddress, bytes.count)
            }
            guard count > 0 else { break }
            content += piece.prefix(count)
        }
        return Array(content.prefix(limit))
    }

    private static func entries(_ path: String) -> [String] {
        guard let directory = unsafe opendir(path) else { return [] }
        defer { unsafe closedir(directory) }
        var names: [String] = []
        while let entry = unsafe readdir(directory) {
            let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { tuple in
                unsafe tuple.withMemoryRebound(to: CChar.self, capacity: 256) { characters in
                    unsafe String(cString: characters)
                }
            }
            names.append(name)
        }
        return names
    }
}
