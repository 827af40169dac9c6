// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// A UNIX stream socket that clients connect to.
///
/// One that this program bound to a path removes the path when it goes away, unless another program
/// has put its own socket there meanwhile. One that was handed over belongs to whoever made it.
public final class ListeningSocket {
    /// Why there is no socket at a path.
    public enum BindError: Error, Equatable {
        /// Another program answers there.
        case inUse
        /// Something that is no socket has this name.
        case notASocket
        case failed(Errno)
    }

    /// Connections that wait before further ones are refused; one client is served at a time.
    private static let backlog: CInt = 8

    private let descriptor: OwnedDescriptor
    private let bound: (path: String, file: FileIdentity)?

    /// Listens at `path`. A socket file that nobody listens at any more is replaced.
    ///
    /// - Parameter permissions: who may connect, less what the umask takes away; by default everybody.
    public init(
        bindingTo path: String, permissions: FilePermissions? = nil
    ) throws(BindError) {
        do throws(Errno) {
            try Self.removeStaleSocket(at: path)
            descriptor = try Self.makeSocket()
            let number = descriptor.rawValue
            // The file gets what the socket has, so it is never there with more than that.
            if let permissions {
                _ = try systemCall { fchmod(number, permissions.rawValue) }
            }
            _ = try unsafe withSocketAddress(path) { (address, size) throws(Errno) in
                try systemCall { unsafe bind(number, address, size) }
            }
            bound = try (path, FileIdentity(of: path))
            _ = try systemCall { listen(number, Self.backlog) }
            try descriptor.setNonblocking()
        } catch .addressInUse {
            throw .inUse
        } catch .notSocket {
            throw .notASocket
        } catch {
            throw .failed(error)
        }
    }

    /// Takes over a socket that listens already.
    public init(adopting descriptor: consuming OwnedDescriptor) throws(Errno) {
        try descriptor.setNonblocking()
        self.descriptor = descriptor
        bound = nil
    }

    deinit {
        // The file may be another program's by now; its own socket is all that this one removes.
        if let bound, (try? FileIdentity(of: bound.path)) == bound.file {
            unsafe _ = unlink(bound.path)
        }
    }

    /// Where clients find it; `nil` for a socket that was handed over without a name.
    public var path: String? {
        if let bound { return bound.path }
        var address = sockaddr_un()
        var size = socklen_t(MemoryLayout<sockaddr_un>.size)
        let number = descriptor.rawValue
        let result = unsafe withUnsafeMutablePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
                unsafe getsockname(number, generic, &size)
            }
        }
        guard result == 0 else { return nil }
        let name = unsafe withUnsafeBytes(of: &address.sun_path) { field in
            unsafe String(decoding: field.prefix { $0 != 0 }, as: UTF8.self)
        }
        return name.isEmpty ? nil : name
    }

    /// The next client, or `nil` if none waits. Its socket does not block.
    public func accept() throws(Errno) -> OwnedDescriptor? {
        do throws(Errno) {
            let number = descriptor.rawValue
            return OwnedDescriptor(owning: try systemCall { clinux_accept(number) })
        } catch .resourceTemporarilyUnavailable, .connectionAbort {
            return nil
        }
    }

    /// Calls `body` whenever a client waits, until the watch is dropped.
    public func watch(
        on loop: any EventLoop, _ body: @escaping () -> Void
    ) throws(Errno) -> Watch {
        try loop.watch(descriptor, for: .readable) { _ in body() }
    }

    private static func makeSocket() throws(Errno) -> OwnedDescriptor {
        let kind = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
        return OwnedDescriptor(owning: try systemCall { socket(AF_UNIX, kind, 0) })
    }

    /// Asks whether somebody listens at `path`, and removes a socket file at which nobody does.
    ///
    /// - Throws: `EADDRINUSE` if somebody does, `ENOTSOCK` if it is another kind of file.
    private static func removeStaleSocket(at path: String) throws(Errno) {
        do throws(Errno) {
            guard try FileIdentity(of: path).isSocket else { throw .notSocket }
            let probe = try makeSocket()
            try probe.setNonblocking()
            let number = probe.rawValue
            _ = try unsafe withSocketAddress(path) { (address, size) throws(Errno) in
                try systemCall { unsafe connect(number, address, size) }
            }
            throw .addressInUse
        } catch .connectionRefused {
            _ = try systemCall { unsafe unlink(path) }
        } catch .noSuchFileOrDirectory {
            return
        } catch .resourceTemporarilyUnavailable {
            // Its backlog is full, so somebody listens.
            throw .addressInUse
        }
    }
}

extension OwnedDescriptor {
    /// Whether this is a socket that listens for connections; `nil` if it is no UNIX stream socket.
    public var isListeningSocket: Bool? {
        guard option(SO_DOMAIN) == AF_UNIX, option(SO_TYPE) == CInt(SOCK_STREAM.rawValue) else {
            return nil
        }
        return option(SO_ACCEPTCONN) != 0
    }

    private func option(_ name: CInt) -> CInt? {
        var value: CInt = 0
        var size = socklen_t(MemoryLayout<CInt>.size)
        guard unsafe getsockopt(rawValue, SOL_SOCKET, name, &value, &size) == 0 else { return nil }
        return value
    }
}

/// Which file a path leads to, so that a path which was given away is recognised.
private struct FileIdentity: Equatable {
    let device: dev_t
    let inode: ino_t
    let isSocket: Bool

    init(of path: String) throws(Errno) {
        var status = stat()
        _ = try systemCall { unsafe lstat(path, &status) }
        device = status.st_dev
        inode = status.st_ino
        isSocket = status.st_mode & S_IFMT == S_IFSOCK
    }
}

/// Calls `body` with the address that a socket at `path` has.
///
/// - Throws: `ENAMETOOLONG` beyond the 107 bytes that the kernel's structure holds.
func withSocketAddress<Result>(
    _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) throws(Errno) -> Result
) throws(Errno) -> Result {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let name = Array(path.utf8)
    guard name.count < MemoryLayout.size(ofValue: address.sun_path), !name.contains(0) else {
        throw .fileNameTooLong
    }
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { field in
        unsafe field.copyBytes(from: name)
    }
    let size = socklen_t(MemoryLayout<sockaddr_un>.size)
    return try unsafe withUnsafePointer(to: &address) { (pointer) throws(Errno) in
        try unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            (generic) throws(Errno) in
            try unsafe body(generic, size)
        }
    }
}
