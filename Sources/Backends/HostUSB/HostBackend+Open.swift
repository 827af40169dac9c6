// SPDX-License-Identifier: Apache-2.0

public import BackendKit
internal import Glibc
internal import Platform

extension HostBackend {
    /// Opens the device's node, if the specification says which one it is.
    public static func open(
        _ specification: DeviceSpecification
    ) throws(BackendError) -> OpenedDevice? {
        guard let bus = try specification.number("bus", in: UInt8(1)...255),
            let address = try specification.number("address", in: UInt8(1)...127)
        else { return nil }
        let node = "/dev/bus/usb/\(threeDigits(bus))/\(threeDigits(address))"
        let number = unsafe Glibc.open(node, O_RDWR | O_CLOEXEC | O_NOCTTY)
        guard number >= 0 else {
            switch errno {
            case ENOENT: throw BackendError("there is no '\(node)': see `lsusb` for what there is")
            case EACCES, EPERM:
                throw BackendError(
                    "permission denied for '\(node)': a udev rule can allow it, "
                        + "docs/host-passthrough.md has one")
            default: throw BackendError("cannot open '\(node)': error \(errno) of the system")
            }
        }
        return OpenedDevice(Descriptor(owning: number), as: specification)
    }

    private static func threeDigits(_ number: UInt8) -> String {
        let digits = String(number)
        return String(repeating: "0", count: 3 - digits.count) + digits
    }
}
