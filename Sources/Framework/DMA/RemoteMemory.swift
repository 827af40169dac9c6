// SPDX-License-Identifier: Apache-2.0

/// Access to guest memory without a descriptor: one request to the client for each access.
///
/// A call blocks until the client has replied. Meanwhile the client's own requests may be served,
/// so a caller must not hold exclusive access to any state that they use.
public protocol RemoteMemory: AnyObject {
    /// Fills `bytes` from guest memory.
    ///
    /// - Throws: ``DMAError/Reason/unmapped`` if the client serves no memory,
    ///   ``DMAError/Reason/lost`` if it refuses or does not reply.
    func read(_ bytes: UnsafeMutableRawBufferPointer, at address: GuestAddress) throws(DMAError)

    /// Writes `bytes` to guest memory. Throws as ``read(_:at:)`` does.
    func write(_ bytes: UnsafeRawBufferPointer, at address: GuestAddress) throws(DMAError)
}
