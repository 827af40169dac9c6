// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Platform

/// An exclusive lock on a device node (`flock`), which the kernel releases with the last descriptor
/// of the open file description.
///
/// Without the lock, two rules that match one device would each claim some of its interfaces. The
/// claims exclude programs that do not use the lock.
final class DeviceNodeLock: Sendable {
    private let descriptor: OwnedDescriptor

    /// Opens and locks a node. This may wait for a driver that starts on the device.
    init(node: String) throws(OpeningError) {
        do throws(LibUSBError) { descriptor = try SystemFiles.openNode(node) } catch {
            throw .failed(error)
        }
        try Self.lock(descriptor.rawValue, of: node)
    }

    /// Bytes of the longest OUT transfer that libusb submits as one request.
    var longestRequest: Int { SystemFiles.longestRequest(of: descriptor.rawValue) }

    /// Locks a node that is open already.
    ///
    /// - Throws: ``OpeningError/locked(by:)``, after a search through all processes of the host.
    static func lock(_ descriptor: CInt, of node: String) throws(OpeningError) {
        guard flock(descriptor, LOCK_EX | LOCK_NB) != 0, errno == EWOULDBLOCK else {
            return
        }
        throw .locked(by: SystemFiles.holders(ofNode: node))
    }
}

/// A device node that the client of the control socket has opened.
struct ReceivedNode: Sendable {
    let lock: Result<Void, OpeningError>
    /// Bytes of the longest OUT transfer that libusb submits as one request.
    let longestRequest: Int

    /// Locks the node. This may wait for a driver that starts on the device.
    init(_ descriptor: CInt, path: String) {
        lock = Result { () throws(OpeningError) in try DeviceNodeLock.lock(descriptor, of: path) }
        longestRequest = SystemFiles.longestRequest(of: descriptor)
    }
}

/// The reason why a device node cannot be opened and locked.
enum OpeningError: Error, Equatable, Sendable {
    case failed(LibUSBError)
    /// The node is locked. The list has the programs that have it open, except this program and
    /// those that this user cannot see.
    case locked(by: [String])
}
