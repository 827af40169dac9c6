// SPDX-License-Identifier: Apache-2.0

public import Platform

/// A descriptor on its way to the one who uses it. If nobody takes it, it is closed.
public final class ReceivedDescriptor {
    private var descriptor: OwnedDescriptor?

    public init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = consume descriptor }

    /// Hands it over; `nil` if it was taken before.
    public func take() -> OwnedDescriptor? { descriptor.take() }
}

/// A device as its user opened it, for a server that need not be allowed to open it itself.
public struct OpenedDevice: ~Copyable {
    public let descriptor: OwnedDescriptor
    /// The device as another process, in another folder, has to name it.
    public let specification: DeviceSpecification

    public init(_ descriptor: consuming OwnedDescriptor, as specification: DeviceSpecification) {
        self.descriptor = descriptor
        self.specification = specification
    }
}
