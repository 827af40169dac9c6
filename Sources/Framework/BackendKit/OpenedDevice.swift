// SPDX-License-Identifier: Apache-2.0

public import Platform

/// A file or device node opened by a client, for a server without the right to open it.
public struct OpenedDevice: ~Copyable {
    /// The open file or device node.
    public let descriptor: OwnedDescriptor
    /// The specification of the device, valid in any working directory.
    public let specification: DeviceSpecification

    /// Takes ownership of a descriptor.
    public init(_ descriptor: consuming OwnedDescriptor, as specification: DeviceSpecification) {
        self.descriptor = descriptor
        self.specification = specification
    }
}
