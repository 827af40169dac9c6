// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import Glibc
internal import Platform
internal import USB

/// Properties of USB devices that libusb does not provide, from sysfs, procfs and device nodes.
enum SystemFiles {
    /// Maximum bytes of descriptors that are read; no real device has more.
    private static let longestDescriptors = 0x40000

    /// The driver of an interface; `usbfs` if a program has claimed the interface.
    static func driver(
        ofInterface number: UInt8, of portPath: String, devices: String = "/sys/bus/usb/devices"
    ) -> String? {
        for configuration in 1...8 {
            let path = "\(devices)/\(portPath):\(configuration).\(number)/driver"
            if let target = link(path) { return target.split(separator: "/").last.map(String.init) }
        }
        return nil
    }

    /// The manufacturer and product strings that the device has; `nil` if it has neither.
    static func modelName(
        of portPath: String, devices: String = "/sys/bus/usb/devices"
    ) -> String? {
        let strings = ["manufacturer", "product"].compactMap {
            attribute($0, of: portPath, devices: devices)
        }
        return strings.isEmpty ? nil : strings.joined(separator: " ")
    }

    /// A text attribute of a device in sysfs, such as `serial`.
    static func attribute(
        _ name: String, of portPath: String, devices: String = "/sys/bus/usb/devices"
    ) -> String? {
        line("\(devices)/\(portPath)/\(name)")
    }

    /// The speed of a device with two SuperSpeedPlus lanes (20000 Mb/s), which libusb may not know;
    /// `nil` for other devices.
    static func speed(
        of portPath: String, devices: String = "/sys/bus/usb/devices"
    ) -> USBSpeed? {
        attribute("speed", of: portPath, devices: devices) == "20000" ? .superSpeedPlus : nil
    }

    /// The descriptors of a device and of its configurations, as the kernel has read them.
    static func descriptors(
        of portPath: String, devices: String = "/sys/bus/usb/devices"
    ) -> [UInt8] {
        contents("\(devices)/\(portPath)/descriptors", limit: longestDescriptors)
    }

    /// The error of opening a device node, predicted from its permissions; `nil` if there is none.
    static func accessError(node: String) -> LibUSBError? {
        if unsafe faccessat(AT_FDCWD, node, R_OK | W_OK, AT_EACCESS) == 0 { return nil }
        return error(errno)
    }

    /// Opens a device node as libusb does.
    static func openNode(_ node: String) throws(LibUSBError) -> OwnedDescriptor {
        let number = unsafe Glibc.open(node, O_RDWR | O_CLOEXEC | O_NOCTTY)
        guard number >= 0 else { throw error(errno) }
        return OwnedDescriptor(owning: number)
    }

    /// Bytes of the longest bulk transfer that libusb submits as one request to usbfs. Blocks while
    /// a driver of the kernel starts on the device and holds its lock.
    ///
    /// libusb cuts longer transfers into requests of 16 KiB if the host's controller has no
    /// scatter-gather lists. When such a transfer ends early, libusb may move data within its
    /// buffer, even OUT data. Guest memory must not be the buffer then.
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

    /// Whether udev's daemon runs. Most builds of libusb need it to notice new devices.
    static var hasUdev: Bool { unsafe access("/run/udev/control", F_OK) == 0 }

    /// Waits until the kernel's drivers have started on a new device. They hold the device's lock,
    /// which opening its node takes.
    static func waitForDrivers(of node: String) {
        let descriptor = unsafe open(node, O_RDWR | O_CLOEXEC)
        if descriptor >= 0 { close(descriptor) }
    }

    /// The other programs that have a device node open, such as `qemu (process 812)`. Without
    /// root's rights only those of this user are found.
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

    /// The first line of a small file, without control characters: a device's strings could contain
    /// commands for the operator's terminal.
    static func line(_ path: String) -> String? {
        let content = String(decoding: contents(path, limit: 512), as: UTF8.self)
        let line = content.prefix { !$0.isNewline }.unicodeScalars.filter { scalar in
            scalar.properties.generalCategory != .control
                && scalar.properties.generalCategory != .format
        }
        let text = collapsingSpaces(String(String.UnicodeScalarView(line)))
        return text.isEmpty ? nil : text
    }

    /// The first `limit` bytes of a file; empty if the file cannot be read.
    private static func contents(_ path: String, limit: Int) -> [UInt8] {
        let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return [] }
        defer { close(descriptor) }
        var content: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 4096)
        while content.count < limit {
            let count = unsafe chunk.withUnsafeMutableBytes { bytes in
                unsafe read(descriptor, bytes.baseAddress, bytes.count)
            }
            guard count > 0 else { break }
            content += chunk.prefix(count)
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
