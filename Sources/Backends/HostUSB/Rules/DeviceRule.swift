// SPDX-License-Identifier: Apache-2.0

package import BackendKit

/// The rule by which a `host:` specification selects a device of the host.
///
/// ``HostBackend`` (HostBackend+Probing) chooses among several devices that match, at the start and
/// after a replug.
package enum DeviceRule: Equatable {
    /// The device that has this address now. It gets another address when it is replugged.
    case address(bus: UInt8, address: UInt8)
    /// The device in a port, by the kernel's name: `1-2.3` is port 3 of the hub at port 2 of bus 1.
    case port(String)
    /// A device with these ids in its device descriptor, and with this serial number if there is
    /// one.
    case ids(vendor: UInt16, product: UInt16, serial: String?)

    /// Parses the rule of a specification, which must have exactly one.
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
            let serial = try specification.value(of: "serial").map(collapsingSpaces)
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

    /// Whether the rule waits for a device that is not connected.
    var isPersistent: Bool {
        if case .address = self { return false }
        return true
    }

    /// Whether the rule matches a device, apart from its serial number.
    func mayMatch(_ device: HostDeviceName) -> Bool {
        switch self {
        case .address(let bus, let address): device.bus == bus && device.address == address
        case .port(let port): device.portPath == port
        case .ids(let vendor, let product, _): device.vendor == vendor && device.product == product
        }
    }

    func matches(_ device: HostDeviceName) -> Bool {
        if case .ids(_, _, let serial?) = self, device.serial != serial { return false }
        return mayMatch(device)
    }

    /// Parses an id as lsusb writes it: hexadecimal, with or without `0x`.
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
    /// The specification for `--device`.
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

/// Escapes a value for a specification.
private func doubledCommas(_ text: String) -> String {
    text.split(separator: ",", omittingEmptySubsequences: false).joined(separator: ",,")
}

/// Removes spaces at the ends of a text and reduces others to single ones. Names and serial numbers
/// are compared and shown in this form.
func collapsingSpaces(_ text: String) -> String {
    text.split(separator: " ").joined(separator: " ")
}

/// Four hexadecimal digits.
func hex(_ number: UInt16) -> String {
    let digits = String(number, radix: 16)
    return String(repeating: "0", count: 4 - digits.count) + digits
}
