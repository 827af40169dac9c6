// SPDX-License-Identifier: Apache-2.0

public import Platform

/// A descriptor that came with a control request, until its user takes ownership.
///
/// The descriptor is closed with this object unless ``take()`` has returned it.
public final class ReceivedDescriptor {
    private var descriptor: OwnedDescriptor?

    /// Takes ownership of a descriptor.
    public init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = consume descriptor }

    /// Transfers ownership to the caller; returns `nil` if an earlier call has done so.
    public func take() -> OwnedDescriptor? { descriptor.take() }
}
