// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// What the kernel's file systems tell of USB devices beyond libusb: names and who uses what.
enum SystemFiles {
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
        let words = ["manufacturer", "product"].compactMap { line("\(devices)/\(portPath)/\($0)") }
        return words.isEmpty ? nil : words.joined(separator: " ")
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
    private static func line(_ path: String) -> String? {
        let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var content = [UInt8](repeating: 0, count: 256)
        let count = unsafe content.withUnsafeMutableBytes { bytes in
            unsafe read(descriptor, bytes.baseAddress, bytes.count)
        }
        let text = String(decoding: content.prefix(max(count, 0)), as: UTF8.self)
        let line = text.prefix { !$0.isNewline }.unicodeScalars.filter { scalar in
            scalar.properties.generalCategory != .control
                && scalar.properties.generalCategory != .format
        }
        let words = String(String.UnicodeScalarView(line)).split(separator: " ")
        return words.isEmpty ? nil : words.joined(separator: " ")
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
