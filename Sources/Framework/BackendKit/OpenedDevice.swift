// SPDX-License-Identifier: Apache-2.0

public import Platform

/// A file or device node opened by a client, for a server without the right to open it.
public struct OpenedDevice: ~Copyable {
    /// The open file or device node.
    public let descriptor: OwnedDescriptor
    /// The device as a process with another working directory must name it.
    public let specification: DeviceSpecification

    /// Joins a descriptor with the specification that names it everywhere.
    public init(_ descriptor: consuming OwnedDescriptor, as specification: DeviceSpecification) {
        self.descriptor = descriptor
        self.specification = specification
    }
}
