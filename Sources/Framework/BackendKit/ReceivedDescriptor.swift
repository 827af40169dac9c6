// SPDX-License-Identifier: Apache-2.0

public import Platform

/// A descriptor that came with a control request and waits for its one user.
///
/// It is closed with this object unless it has been taken.
public final class ReceivedDescriptor {
    private var descriptor: OwnedDescriptor?

    /// Takes ownership of a descriptor.
    public init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = consume descriptor }

    /// Transfers ownership to the caller; returns `nil` if that has been done before.
    public func take() -> OwnedDescriptor? { descriptor.take() }
}
