// SPDX-License-Identifier: Apache-2.0

/// An ``OwnedDescriptor`` that several references share, closed with the last of them.
///
/// A function that holds a reference can use the descriptor even if it calls code that drops the
/// owner's reference.
public final class SharedDescriptor: Sendable {
    /// The descriptor.
    public let descriptor: OwnedDescriptor

    /// Takes over the ownership of a descriptor.
    public init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }
}
