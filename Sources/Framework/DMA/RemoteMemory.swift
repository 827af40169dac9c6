// SPDX-License-Identifier: Apache-2.0

/// Guest memory that is reached by asking the client, one message for each access.
///
/// The implementation waits for the answer. While it waits it may serve other messages of the
/// client, so a caller must not hold exclusive access to anything that those reach.
public protocol RemoteMemory: AnyObject {
    /// Fills `bytes` from guest memory.
    func read(_ bytes: UnsafeMutableRawBufferPointer, at address: GuestAddress) throws(DMAError)

    /// Writes `bytes` to guest memory.
    func write(_ bytes: UnsafeRawBufferPointer, at address: GuestAddress) throws(DMAError)
}
