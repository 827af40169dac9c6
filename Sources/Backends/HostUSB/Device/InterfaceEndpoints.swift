// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The endpoints of each interface of a device, in all of its configurations and alternate
/// settings.
struct InterfaceEndpoints: Equatable, Sendable {
    private var endpoints: [UInt8: Set<EndpointAddress>] = [:]

    /// - Parameter bytes: all descriptors of the device, as in sysfs.
    init(in bytes: [UInt8]) {
        for configuration in ConfigurationDescriptor.all(in: bytes) {
            for interface in configuration.interfaces {
                endpoints[interface.number, default: []].formUnion(
                    interface.endpoints.map(\.address))
            }
        }
    }

    func has(_ endpoint: EndpointAddress, interface: UInt8) -> Bool {
        endpoints[interface]?.contains(endpoint) ?? false
    }
}
