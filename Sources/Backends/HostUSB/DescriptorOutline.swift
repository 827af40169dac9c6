// SPDX-License-Identifier: Apache-2.0

package import USB

/// What a configuration of a device holds, as far as passing it through needs to know.
///
/// The bytes are the device's own, and it may lie: about lengths, counts and numbers. So nothing is
/// counted on; descriptors are walked one by one, and the walk ends where one leaves its bounds.
package struct ConfigurationOutline: Equatable {
    package struct Interface: Equatable {
        package let number: UInt8
        /// That of its first setting.
        package let usbClass: USBClass
    }

    /// The kernel's own bound for one configuration (`USB_MAXINTERFACES`).
    package static let mostInterfaces = 32
    /// The kernel's own bound for one device (`USB_MAXCONFIG`).
    package static let mostConfigurations = 8

    package let value: UInt8
    /// Each number once, in the order of the device.
    package fileprivate(set) var interfaces: [Interface] = []

    /// The configurations in a device's descriptors, as they stand one after the other in the
    /// kernel's file.
    package static func all(in bytes: [UInt8]) -> [ConfigurationOutline] {
        var found: [ConfigurationOutline] = []
        var rest = bytes[...]
        // Each has a length and a type.
        while let length = rest.first.map(Int.init), length >= 2, length <= rest.count {
            let descriptor = Array(rest.prefix(length))
            rest = rest.dropFirst(length)
            switch DescriptorType(rawValue: descriptor[1]) {
            case .configuration where length >= 9:
                if found.count == mostConfigurations { return found }
                found.append(ConfigurationOutline(value: descriptor[5]))
            case .interface where length >= 9:
                guard let last = found.indices.last else { continue }
                found[last].note(
                    Interface(
                        number: descriptor[2],
                        usbClass: USBClass(
                            descriptor[5], subclass: descriptor[6], protocol: descriptor[7])))
            default:
                break
            }
        }
        return found
    }

    private mutating func note(_ interface: Interface) {
        guard interfaces.count < Self.mostInterfaces,
            !interfaces.contains(where: { $0.number == interface.number })
        else { return }
        interfaces.append(interface)
    }
}
