// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Glibc

/// Messages for the operator: why a device cannot be passed through, and what to do.
enum Diagnosis {
    static func noUSB(_ error: LibUSBError) -> BackendError {
        BackendError("libusb cannot be used on this host: \(error)")
    }

    static func noDevice(bus: UInt8, address: UInt8, of present: [HostDeviceName]) -> BackendError {
        guard !present.isEmpty else {
            return BackendError("no device \(bus):\(address); this host has no USB devices")
        }
        let list = present.map { "\n  \($0.specification)  \($0.displayName)" }.joined()
        return BackendError("no device \(bus):\(address); this host has:\(list)")
    }

    /// The error for a received descriptor that is not an open device node.
    static func notANode(_ rule: DeviceRule, _ error: LibUSBError) -> BackendError {
        BackendError(
            "the descriptor passed for \(rule) is not a device node under /dev/bus/usb that is "
                + "open for reading and writing: \(error)")
    }

    static func wrongNode(_ rule: DeviceRule, _ name: HostDeviceName) -> BackendError {
        BackendError(
            "the descriptor passed for \(rule) belongs to another device: "
                + "\(name.specification) (\(name.displayName))")
    }

    static func hub(_ name: HostDeviceName) -> BackendError {
        BackendError(
            "\(name.specification) (\(name.displayName)) is a hub, which stays with the host; "
                + "pass the devices behind it")
    }

    static func unknownSpeed(_ name: HostDeviceName) -> BackendError {
        BackendError(
            "the speed of \(name.specification) (\(name.displayName)) is unknown to libusb")
    }

    static func cannotOpen(_ name: HostDeviceName, _ error: LibUSBError) -> BackendError {
        let start = "cannot open \(name.node) (\(name.displayName)): "
        switch error {
        case .access:
            return BackendError(
                start + "permission denied. Run as root, or write into "
                    + "/etc/udev/rules.d/70-usbvfiod.rules\n"
                    + "  \(name.udevRule)\n"
                    + "then run `udevadm control --reload && udevadm trigger` as root, "
                    + "and usbvfiod as a member of that group")
        case .noDevice:
            return BackendError(start + "it was unplugged, or the node is missing")
        default:
            return BackendError(start + "\(error)")
        }
    }

    /// - Parameter seesAll: whether the search covered the programs of all users, which needs root.
    static func cannotOpen(
        _ name: HostDeviceName, _ error: OpeningError, seesAll: Bool = geteuid() == 0
    ) -> BackendError {
        switch error {
        case .failed(let error): return cannotOpen(name, error)
        case .locked(let programs):
            var owner = programs.joined(separator: ", ")
            if programs.isEmpty {
                owner = "another --device of this server"
                if !seesAll { owner += ", or by a program of another user" }
            }
            return BackendError(
                "\(name.specification) (\(name.displayName)) is passed through already, by \(owner)"
            )
        }
    }

    static func nothingClaimed(_ name: HostDeviceName, problems: [String]) -> BackendError {
        BackendError("\(name.node) (\(name.displayName)): \(problems.joined(separator: "; "))")
    }

    static func ambiguous(_ rule: DeviceRule, candidates: [HostDeviceName]) -> BackendError {
        let list = candidates.map { name in
            // Equal devices may have equal serial numbers as well.
            let isUnique = candidates.filter { $0.serial == name.serial }.count == 1
            let other = isUnique && name.serial != nil ? " or \(name.idRule)" : ""
            return "\n  \(name.portRule)\(other)  \(name.displayName)"
        }.joined()
        return BackendError(
            "'\(rule)' matches \(candidates.count) devices; name one of them:\(list)")
    }

    /// The warning when the kernel has no memory for a transfer.
    static func memoryLimit(
        _ count: Int, file: String = "/sys/module/usbcore/parameters/usbfs_memory_mb"
    ) -> String {
        let limit = SystemFiles.line(file).map { "\($0) MiB now" } ?? "16 MiB unless set"
        return
            "a transfer of \(count) bytes is over the kernel's limit for USB transfers, which all "
            + "programs share (\(limit)); raise it: echo 64 >\(file)"
    }

    static func noBandwidth(_ action: String) -> String {
        "the host's bus has no bandwidth left for \(action): other devices on it have reserved it; "
            + "stop one of them, or plug this one in at another controller"
    }

    static let noHotplug =
        "the host's udev daemon does not run (/run/udev/control is missing): new devices may "
        + "not be noticed"
}
