// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Platform

/// Keeps a device for one who passes it on: a lock on its node (`flock`), which the kernel takes off
/// when the last descriptor of this opening is closed.
///
/// Without it two rules that mean one device would both take interfaces of it, each with the other's
/// half. Programs that do not know of the lock are kept away by the interfaces' claims.
final class DeviceNodeLock: Sendable {
    private let descriptor: OwnedDescriptor

    private init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }

    /// Opens a node and keeps the device. It may have to wait for a driver that starts on it.
    static func keep(_ node: String) throws(OpeningError) -> DeviceNodeLock {
        let descriptor: OwnedDescriptor
        do throws(LibUSBError) { descriptor = try SystemFiles.openNode(node) } catch {
            throw .refused(error)
        }
        try keep(descriptor.rawValue, of: node)
        return DeviceNodeLock(descriptor)
    }

    /// Bytes of the longest OUT transfer that libusb submits as one request.
    var longestRequest: Int { SystemFiles.longestRequest(of: descriptor.rawValue) }

    /// Keeps a device by a descriptor that somebody else holds. Where it is kept already, all programs
    /// are looked through for the reason, which takes time.
    static func tryKeeping(_ descriptor: CInt, of node: String) -> Result<Void, OpeningError> {
        Result { () throws(OpeningError) in try keep(descriptor, of: node) }
    }

    private static func keep(_ descriptor: CInt, of node: String) throws(OpeningError) {
        guard flock(descriptor, LOCK_EX | LOCK_NB) != 0, errno == EWOULDBLOCK else {
            return
        }
        throw .taken(by: SystemFiles.holders(ofNode: node))
    }
}

/// A device node that the client of the control socket has opened.
struct ReceivedNode: Sendable {
    let lock: Result<Void, OpeningError>
    /// Bytes of the longest OUT transfer that libusb submits as one request.
    let longestRequest: Int

    /// Locks the node. This may wait for a driver that starts on the device.
    init(_ descriptor: CInt, path: String) {
        lock = DeviceNodeLock.tryKeeping(descriptor, of: path)
        longestRequest = SystemFiles.longestRequest(of: descriptor)
    }
}

/// Why a device's node cannot be opened and kept.
enum OpeningError: Error, Equatable, Sendable {
    case refused(LibUSBError)
    /// It is passed on already: by these programs, or by this one.
    case taken(by: [String])
}
