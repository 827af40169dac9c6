// SPDX-License-Identifier: Apache-2.0

public import Platform

/// A descriptor on its way to the one who uses it. If nobody takes it, it is closed.
public final class PassedDescriptor {
    private var descriptor: Descriptor?

    public init(_ descriptor: consuming Descriptor) { self.descriptor = consume descriptor }

    /// Hands it over; `nil` if it was taken before.
    public func take() -> Descriptor? { descriptor.take() }
}

/// A device as its user opened it, for a server that need not be allowed to open it itself.
public struct OpenedDevice: ~Copyable {
    public let descriptor: Descriptor
    /// The device as another process, in another folder, has to name it.
    public let specification: DeviceSpecification

    public init(_ descriptor: consuming Descriptor, as specification: DeviceSpecification) {
        self.descriptor = descriptor
        self.specification = specification
    }
}
