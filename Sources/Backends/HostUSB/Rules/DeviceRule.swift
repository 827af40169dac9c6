// SPDX-License-Identifier: Apache-2.0

package import BackendKit

/// Which device of the host is meant: what stands behind `host:`.
package enum DeviceRule: Equatable {
    /// The device that has this number on this bus now. It gets another one when it is replugged.
    case address(bus: UInt8, address: UInt8)
    /// Whatever is plugged in there, by the kernel's name for the place: `1-2.3` is port 3 of the
    /// hub at port 2 of bus 1.
    case port(String)
    /// A device that says so of itself.
    case ids(vendor: UInt16, product: UInt16, serial: String?)

    /// The rule that a specification states; it must state exactly one.
    package init(_ specification: DeviceSpecification) throws(BackendError) {
        let given = Set(specification.parameters.map(\.name))
            .subtracting(DeviceSpecification.common.map(\.name))
        if given == ["bus", "address"],
            let bus = try specification.number("bus", in: UInt8(1)...255),
            let address = try specification.number("address", in: UInt8(1)...127)
        {
            self = .address(bus: bus, address: address)
        } else if given == ["port"], let port = try specification.value(of: "port") {
            guard Self.isPort(port) else {
                throw BackendError(
                    "'port=\(port)' is not a port: write it as /sys/bus/usb/devices names it, "
                        + "for example 1-2.3 (`usbvfiod devices` lists them)")
            }
            self = .port(port)
        } else if given.subtracting(["serial"]) == ["vendor", "product"],
            let vendor = try Self.id("vendor", in: specification),
            let product = try Self.id("product", in: specification)
        {
            let serial = try specification.value(of: "serial").map(words)
            if serial == "" {
                throw BackendError(
                    "'\(specification.text)' names a serial number of spaces alone, which no device "
                        + "has: leave 'serial' out")
            }
            self = .ids(vendor: vendor, product: product, serial: serial)
        } else {
            throw BackendError(
                "'\(specification.text)' must name a device in one of these ways: "
                    + "host:bus=N,address=N, host:port=BUS-PORT or "
                    + "host:vendor=ID,product=ID[,serial=TEXT] (`usbvfiod devices` lists them)")
        }
    }

    /// Whether a device that is not there now can be waited for.
    var isLasting: Bool {
        if case .address = self { return false }
        return true
    }

    /// Whether the rule means this device, as far as can be told without its serial number.
    func mayMean(_ device: HostDeviceName) -> Bool {
        switch self {
        case .address(let bus, let address): device.bus == bus && device.address == address
        case .port(let port): device.portPath == port
        case .ids(let vendor, let product, _): device.vendor == vendor && device.product == product
        }
    }

    /// Whether the rule means this device.
    func means(_ device: HostDeviceName) -> Bool {
        if case .ids(_, _, let serial?) = self, device.serial != serial { return false }
        return mayMean(device)
    }

    /// An id as lsusb writes it: hexadecimal, with `0x` or without.
    private static func id(
        _ name: String, in specification: DeviceSpecification
    ) throws(BackendError) -> UInt16? {
        guard let text = try specification.value(of: name) else { return nil }
        let digits = text.hasPrefix("0x") ? text.dropFirst(2) : Substring(text)
        guard (1...4).contains(digits.utf8.count), digits.allSatisfy(\.isHexDigit),
            let id = UInt16(digits, radix: 16)
        else {
            throw BackendError(
                "'\(name)=\(text)' must be a hexadecimal number as lsusb shows it, such as 0x46f4")
        }
        return id
    }

    private static func isPort(_ text: String) -> Bool {
        let parts = text.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 2 else { return false }
        let numbers = [parts[0]] + parts[1].split(separator: ".", omittingEmptySubsequences: false)
        return numbers.allSatisfy { number in
            number.utf8.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }
                && UInt8(number) != nil && number.first != "0"
        }
    }
}

extension DeviceRule: CustomStringConvertible {
    /// What is written behind `--device`.
    package var description: String {
        switch self {
        case .address(let bus, let address): "host:bus=\(bus),address=\(address)"
        case .port(let port): "host:port=\(port)"
        case .ids(let vendor, let product, let serial):
            "host:vendor=0x\(hex(vendor)),product=0x\(hex(product))"
                + (serial.map { ",serial=" + doubledCommas($0) } ?? "")
        }
    }
}

/// A value as a specification holds it.
private func doubledCommas(_ text: String) -> String {
    text.split(separator: ",", omittingEmptySubsequences: false).joined(separator: ",,")
}

/// Text with single spaces between its words: names and serial numbers are compared and shown so.
func words(_ text: String) -> String {
    text.split(separator: " ").joined(separator: " ")
}

/// Four hexadecimal digits.
func hex(_ number: UInt16) -> String {
    let digits = String(number, radix: 16)
    return String(repeating: "0", count: 4 - digits.count) + digits
}
