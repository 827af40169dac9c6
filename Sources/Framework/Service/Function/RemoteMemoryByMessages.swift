// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import SystemPackage
internal import VFIOUser

/// Guest memory without a descriptor, accessed by DMA_READ and DMA_WRITE messages to the client.
///
/// A client that does not serve them, such as Cloud Hypervisor, makes the access fail as unmapped.
final class RemoteMemoryByMessages: RemoteMemory {
    private weak var connection: Connection?

    init(_ connection: Connection) { self.connection = connection }

    func read(_ bytes: UnsafeMutableRawBufferPointer, at address: GuestAddress) throws(DMAError) {
        do throws(Errno) {
            guard let connection else { throw .socketNotConnected }
            unsafe try connection.readMemory(into: bytes, at: address.rawValue)
        } catch {
            throw failure(error, at: address, count: bytes.count)
        }
    }

    func write(_ bytes: UnsafeRawBufferPointer, at address: GuestAddress) throws(DMAError) {
        do throws(Errno) {
            guard let connection else { throw .socketNotConnected }
            unsafe try connection.writeMemory(bytes, at: address.rawValue)
        } catch {
            throw failure(error, at: address, count: bytes.count)
        }
    }

    private func failure(_ error: Errno, at address: GuestAddress, count: Int) -> DMAError {
        DMAError(error == .notSupported ? .unmapped : .lost, at: address, count: count)
    }
}
