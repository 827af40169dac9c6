// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// A listening UNIX stream socket; see unix(7).
///
/// A socket that this process has bound to a path removes the socket file when it is deallocated,
/// unless the path leads to another file by then. The file of an adopted socket belongs to the
/// process that bound it.
public final class ListeningSocket {
    /// An error of ``init(bindingTo:permissions:)``.
    public enum BindError: Error, Equatable {
        /// Another process listens at the path.
        case inUse
        /// The path leads to a file that is not a socket.
        case notASocket
        /// A system call failed, or the path is too long (`ENAMETOOLONG`).
        case failed(Errno)
    }

    /// The length of the kernel's queue of pending connections (listen(2)).
    private static let backlog: CInt = 8

    private let descriptor: OwnedDescriptor
    private let bound: (path: String, file: FileIdentity)?

    /// Binds a socket to a path and listens.
    ///
    /// A socket file at which no process listens is replaced.
    ///
    /// - Parameters:
    ///   - path: at most 107 bytes.
    ///   - permissions: the mode of the socket file, from which the umask is subtracted. A client
    ///     needs write permission to connect. `nil` stands for 0777.
    /// - Throws: a ``BindError``.
    public init(
        bindingTo path: String, permissions: FilePermissions? = nil
    ) throws(BindError) {
        do throws(Errno) {
            try Self.removeStaleSocket(at: path)
            descriptor = try Self.makeSocket()
            let number = descriptor.rawValue
            // bind(2) creates the file with the mode of the socket, so the file never has another.
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

    /// Takes over a socket that listens already, inherited from a service manager for example.
    ///
    /// - Throws: the errno of fcntl(2).
    public init(adopting descriptor: consuming OwnedDescriptor) throws(Errno) {
        try descriptor.setNonblocking()
        self.descriptor = descriptor
        bound = nil
    }

    deinit {
        // The path may lead to another process's socket by now.
        if let bound, (try? FileIdentity(of: bound.path)) == bound.file {
            unsafe _ = unlink(bound.path)
        }
    }

    /// The path that clients connect to; `nil` for an adopted socket without one (getsockname(2)).
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

    /// Accepts the next pending connection.
    ///
    /// The returned socket is non-blocking.
    ///
    /// - Returns: `nil` if no connection is pending.
    /// - Throws: the errno of accept4(2), `EMFILE` for example.
    public func accept() throws(Errno) -> OwnedDescriptor? {
        do throws(Errno) {
            let number = descriptor.rawValue
            return OwnedDescriptor(owning: try systemCall { clinux_accept(number) })
        } catch .resourceTemporarilyUnavailable, .connectionAbort {
            return nil
        }
    }

    /// Calls `body` in each turn in which a connection is pending, until the watch is dropped.
    ///
    /// - Throws: `EEXIST` if the socket is watched already, otherwise the errno of epoll_ctl(2).
    public func watch(
        on loop: any EventLoop, _ body: @escaping () -> Void
    ) throws(Errno) -> Watch {
        try loop.watch(descriptor, for: .readable) { _ in body() }
    }

    private static func makeSocket() throws(Errno) -> OwnedDescriptor {
        let kind = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
        return OwnedDescriptor(owning: try systemCall { socket(AF_UNIX, kind, 0) })
    }

    /// Removes the socket file at `path` if no process listens there.
    ///
    /// Does nothing if there is no file.
    ///
    /// - Throws: `EADDRINUSE` if a process listens, `ENOTSOCK` if the file is not a socket.
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
            // The backlog is full, so a process listens.
            throw .addressInUse
        }
    }
}

extension OwnedDescriptor {
    /// Whether the socket listens for connections (`SO_ACCEPTCONN`, socket(7)); `nil` if the
    /// descriptor is not a UNIX stream socket.
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

/// The identity of the file that a path leads to.
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

/// Calls `body` with the socket address of `path`.
///
/// - Throws: `ENAMETOOLONG` if the path exceeds the 107 bytes of `sockaddr_un` or contains a NUL;
///   otherwise the error that `body` throws.
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
