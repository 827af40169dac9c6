// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// Stream sockets of the UNIX domain: bytes, and descriptors that travel with them.
public enum UnixSocket {
    /// Bytes of the longest path: `sun_path` less the closing NUL.
    public static let longestPath = 107

    /// Why a socket could not be made ready, as a sentence for the person who named it.
    public struct Failure: Error, Equatable, CustomStringConvertible {
        public let description: String
    }

    /// Connects to the socket at a path. The descriptor is non-blocking.
    public static func connect(to path: String) throws(Failure) -> Descriptor {
        let socket = try makeSocket()
        if let error = try connectError(socket, to: path) {
            throw Failure(description: "cannot connect to \(path): \(error)")
        }
        return socket
    }

    /// A socket that a parent process made and left open for this one.
    public enum Adopted: ~Copyable {
        /// Clients connect to it.
        case listening(ListeningSocket)
        /// The client is at its other end.
        case connected(Descriptor)
    }

    /// Takes over a descriptor that a parent process left open, and finds out what it is.
    public static func adopt(_ descriptor: consuming Descriptor) throws(Failure) -> Adopted {
        let number = descriptor.rawValue
        guard option(SO_DOMAIN, of: number) == AF_UNIX,
            option(SO_TYPE, of: number) == CInt(SOCK_STREAM.rawValue)
        else {
            throw Failure(
                description: "descriptor \(number) is not a stream socket of the UNIX domain")
        }
        do throws(Errno) {
            try descriptor.setNonblocking()
            _ = try systemCall { fcntl(number, F_SETFD, FD_CLOEXEC) }
        } catch {
            throw Failure(description: "cannot use descriptor \(number): \(error)")
        }
        if option(SO_ACCEPTCONN, of: number) == 1 {
            return .listening(ListeningSocket(listening: descriptor))
        }
        return .connected(descriptor)
    }

    private static func option(_ name: CInt, of socket: CInt) -> CInt? {
        var value: CInt = 0
        var count = socklen_t(MemoryLayout<CInt>.size)
        guard unsafe getsockopt(socket, SOL_SOCKET, name, &value, &count) == 0 else { return nil }
        return value
    }

    // MARK: - Messages

    /// Sends bytes, and descriptors with the first of them; returns how many bytes went out.
    ///
    /// - Throws: `EAGAIN` if none can be sent now.
    public static func send(
        _ bytes: UnsafeRawBufferPointer, descriptors: [CInt] = [], to socket: borrowing Descriptor
    ) throws(Errno) -> Int {
        let number = socket.rawValue
        var part = unsafe iovec(
            iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
        return try systemCall {
            unsafe clinux_send(
                number, &part, 1, descriptors, descriptors.count, CInt(MSG_DONTWAIT))
        }
    }

    /// Receives bytes and adds the descriptors that came with them to a list; zero bytes mean that the
    /// peer has closed its side.
    ///
    /// The kernel never joins the bytes after a message with descriptors to that message, but it does
    /// join those before it.
    ///
    /// - Throws: `EAGAIN` if there is nothing now.
    public static func receive(
        into bytes: UnsafeMutableRawBufferPointer, descriptors: inout DescriptorList,
        from socket: borrowing Descriptor
    ) throws(Errno) -> Int {
        let number = socket.rawValue
        var received = InlineArray<64, CInt>(repeating: -1)
        var receivedCount = 0
        var isTruncated = false
        var span = received.mutableSpan
        let count = try unsafe span.withUnsafeMutableBufferPointer { numbers throws(Errno) in
            try systemCall {
                unsafe clinux_receive(
                    number, bytes.baseAddress, bytes.count, numbers.baseAddress, numbers.count,
                    &receivedCount, &isTruncated, CInt(MSG_DONTWAIT))
            }
        }
        for index in 0..<receivedCount {
            descriptors.append(Descriptor(owning: received[index]))
        }
        if isTruncated { descriptors.isTruncated = true }
        return count
    }

    /// Waits until the socket is ready for one of `events` or the time is over; empty means the latter.
    public static func wait(
        for events: Readiness, on socket: borrowing Descriptor, atMost limit: Duration
    ) throws(Errno) -> Readiness {
        var entry = pollfd(fd: socket.rawValue, events: 0, revents: 0)
        if events.contains(.readable) { entry.events |= Int16(POLLIN) }
        if events.contains(.writable) { entry.events |= Int16(POLLOUT) }
        // Rounded up, so that the time is really over when nothing happened.
        let milliseconds = max(limit.nanoseconds, 0) / 1_000_000 + 1
        _ = try systemCall { unsafe poll(&entry, 1, CInt(clamping: milliseconds)) }
        var ready: Readiness = []
        if entry.revents & Int16(POLLIN) != 0 { ready.insert(.readable) }
        if entry.revents & Int16(POLLOUT) != 0 { ready.insert(.writable) }
        if entry.revents & Int16(POLLHUP | POLLERR | POLLNVAL) != 0 { ready.insert(.closed) }
        return ready
    }

    // MARK: - Addresses

    fileprivate static func makeSocket() throws(Failure) -> Descriptor {
        do throws(Errno) {
            let type = CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
            return Descriptor(owning: try systemCall { socket(AF_UNIX, type, 0) })
        } catch {
            throw Failure(description: "cannot create a socket: \(error)")
        }
    }

    fileprivate static func connectError(
        _ socket: borrowing Descriptor, to path: String
    ) throws(Failure) -> Errno? {
        let number = socket.rawValue
        return try unsafe withAddress(path) { address, count in
            unsafe Glibc.connect(number, address, count) == 0 ? nil : Errno.current
        }
    }

    fileprivate static func withAddress<Result>(
        _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
    ) throws(Failure) -> Result {
        let bytes = Array(path.utf8)
        guard !bytes.isEmpty, !bytes.contains(0) else {
            throw Failure(description: "a socket needs a path")
        }
        guard bytes.count <= longestPath else {
            throw Failure(
                description: """
                    the socket path \(path) has \(bytes.count) bytes, and the system allows \
                    \(longestPath)
                    """)
        }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
        return unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
                unsafe body(generic, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }
}

/// A socket that clients connect to.
public final class ListeningSocket {
    private let socket: Descriptor
    /// The file that this socket made, with what tells it from a later one of the same name.
    private var file: (path: String, device: dev_t, inode: ino_t)?

    /// Connections that the kernel keeps until they are accepted. One client is served at a time; the
    /// others wait here.
    private static let backlog: CInt = 8

    /// Makes a socket at a path. A file left behind by a server that is gone is replaced; a socket
    /// that somebody listens on, or a file of another kind, is not.
    ///
    /// - Parameter mode: the permissions of the file; `nil` leaves them to the umask.
    public init(path: String, mode: UInt32? = nil) throws(UnixSocket.Failure) {
        socket = try UnixSocket.makeSocket()
        let number = socket.rawValue
        // On Linux the permissions of the unbound socket become those of the file.
        if let mode { _ = fchmod(number, mode) }
        if let error = try Self.bindError(socket, to: path) {
            guard error == .addressInUse else {
                throw UnixSocket.Failure(description: "cannot create the socket \(path): \(error)")
            }
            try Self.removeStaleFile(path)
            if let error = try Self.bindError(socket, to: path) {
                throw UnixSocket.Failure(description: "cannot create the socket \(path): \(error)")
            }
        }
        var status = stat()
        if unsafe lstat(path, &status) == 0 {
            file = (path, status.st_dev, status.st_ino)
        }
        guard listen(number, Self.backlog) == 0 else {
            throw UnixSocket.Failure(description: "cannot listen on \(path): \(Errno.current)")
        }
    }

    /// Takes over a socket that listens already.
    fileprivate init(listening socket: consuming Descriptor) { self.socket = socket }

    deinit { removeFile() }

    /// Calls `body` whenever a client wants to connect.
    public func watch(
        on loop: any EventLoop, _ body: @escaping () -> Void
    ) throws(Errno) -> Watch {
        try loop.watch(socket, for: .readable) { _ in body() }
    }

    /// The next client's connection, non-blocking; `nil` if none is waiting.
    public func accept() throws(Errno) -> Descriptor? {
        let number = socket.rawValue
        do throws(Errno) {
            return Descriptor(owning: try systemCall { clinux_accept(number) })
        } catch {
            // A client that gave up while it waited is as good as none.
            if error == .wouldBlock || error == .connectionAbort { return nil }
            throw error
        }
    }

    /// Removes the socket's file, if it is still the one that this socket made.
    public func removeFile() {
        guard let file else { return }
        self.file = nil
        var status = stat()
        guard unsafe lstat(file.path, &status) == 0, status.st_dev == file.device,
            status.st_ino == file.inode
        else { return }
        unsafe _ = unlink(file.path)
    }

    private static func bindError(
        _ socket: borrowing Descriptor, to path: String
    ) throws(UnixSocket.Failure) -> Errno? {
        let number = socket.rawValue
        return try unsafe UnixSocket.withAddress(path) { address, count in
            unsafe bind(number, address, count) == 0 ? nil : Errno.current
        }
    }

    private static func removeStaleFile(_ path: String) throws(UnixSocket.Failure) {
        var status = stat()
        // Gone in the meantime: as good as removed.
        guard unsafe lstat(path, &status) == 0 else { return }
        guard status.st_mode & S_IFMT == S_IFSOCK else {
            throw UnixSocket.Failure(
                description: "\(path) exists and is not a socket; it is left alone")
        }
        let probe = try UnixSocket.makeSocket()
        switch try UnixSocket.connectError(probe, to: path) {
        case .connectionRefused?:
            guard unsafe unlink(path) == 0 || Errno.current == .noSuchFileOrDirectory else {
                throw UnixSocket.Failure(
                    description: "cannot replace the stale socket \(path): \(Errno.current)")
            }
        case .noSuchFileOrDirectory?:
            return
        case nil, .wouldBlock?:
            throw UnixSocket.Failure(
                description: "\(path) is in use: another program listens on it")
        case let error?:
            throw UnixSocket.Failure(
                description: "cannot tell whether \(path) is in use: \(error)")
        }
    }
}
