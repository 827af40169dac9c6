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
        for (_, descriptor) in DescriptorWalk(bytes) {
            switch DescriptorType(rawValue: descriptor[1]) {
            case .configuration where descriptor.count >= 9:
                if found.count == mostConfigurations { return found }
                found.append(ConfigurationOutline(value: descriptor[5]))
            case .interface where descriptor.count >= 9:
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

/// Which endpoints a device's interfaces have, in all of their settings and of its configurations.
struct InterfaceEndpoints: Equatable, Sendable {
    private var endpoints: [UInt8: Set<EndpointAddress>] = [:]

    /// - Parameter bytes: the device's descriptors, as they stand one after the other.
    init(in bytes: [UInt8]) {
        var interface: UInt8?
        for (_, descriptor) in DescriptorWalk(bytes) {
            switch DescriptorType(rawValue: descriptor[1]) {
            case .configuration: interface = nil
            case .interface where descriptor.count >= 9: interface = descriptor[2]
            case .endpoint where descriptor.count >= 7:
                if let interface {
                    endpoints[interface, default: []].insert(
                        EndpointAddress(rawValue: descriptor[2]))
                }
            default: break
            }
        }
    }

    func has(_ endpoint: EndpointAddress, interface: UInt8) -> Bool {
        endpoints[interface]?.contains(endpoint) ?? false
    }
}

/// Descriptors that stand one after the other, as far as each has a length and a type; with where
/// they begin.
struct DescriptorWalk: Sequence, IteratorProtocol {
    private let bytes: [UInt8]
    private let takesCutOff: Bool
    private var nextOffset = 0

    /// - Parameter takesCutOff: the last one may be longer than what there is of it.
    init(_ bytes: [UInt8], takesCutOff: Bool = false) {
        self.bytes = bytes
        self.takesCutOff = takesCutOff
    }

    mutating func next() -> (offset: Int, bytes: [UInt8])? {
        let offset = nextOffset
        guard bytes.count - offset >= 2 else { return nil }
        let length = Int(bytes[offset])
        guard length >= 2, takesCutOff || length <= bytes.count - offset else { return nil }
        nextOffset = Swift.min(offset + length, bytes.count)
        return (offset, Array(bytes[offset..<nextOffset]))
    }
}
