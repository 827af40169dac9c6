// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// Functions of UNIX stream sockets, which carry bytes and file descriptors; see unix(7).
public enum UnixSocket {
    /// Connects to the socket at a path, without blocking.
    ///
    /// The returned socket is non-blocking.
    ///
    /// - Parameter path: at most 107 bytes.
    /// - Returns: the socket.
    /// - Throws: `ENOENT` if there is no file, `ECONNREFUSED` if no process listens, `EAGAIN` if
    ///   the queue of pending connections is full, `ENAMETOOLONG` for a longer path, otherwise the
    ///   errno of connect(2).
    public static func connect(to path: String) throws(Errno) -> OwnedDescriptor {
        let type = CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        let descriptor = OwnedDescriptor(owning: try systemCall { socket(AF_UNIX, type, 0) })
        let number = descriptor.rawValue
        _ = try unsafe withSocketAddress(path) { (address, size) throws(Errno) in
            try systemCall { unsafe Glibc.connect(number, address, size) }
        }
        return descriptor
    }

    // MARK: - Messages

    /// Sends bytes without blocking, and descriptors with the first of them; see sendmsg(2).
    ///
    /// - Parameters:
    ///   - bytes: at least one byte if there are descriptors.
    ///   - descriptors: at most 64 descriptors (`SCM_RIGHTS`). The receiver gets duplicates; the
    ///     sender's stay open.
    ///   - socket: a connected socket.
    /// - Returns: the number of bytes sent, which may be less than requested. If it is not 0, all
    ///   descriptors were sent.
    /// - Throws: `EAGAIN` if nothing can be sent now, `EPIPE` if the peer has closed its end (no
    ///   signal is raised), `EINVAL` for more descriptors, otherwise the errno of sendmsg(2).
    public static func send(
        _ bytes: UnsafeRawBufferPointer, descriptors: [CInt] = [],
        to socket: borrowing OwnedDescriptor
    ) throws(Errno) -> Int {
        let number = socket.rawValue
        var part = unsafe iovec(
            iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
        return try systemCall {
            unsafe clinux_send(
                number, &part, 1, descriptors, descriptors.count, CInt(MSG_DONTWAIT))
        }
    }

    /// Receives bytes and descriptors without blocking; see recvmsg(2).
    ///
    /// A call receives no bytes behind those of a message with descriptors. The received bytes may
    /// begin with bytes that were sent before that message.
    ///
    /// - Parameters:
    ///   - bytes: the buffer to fill.
    ///   - descriptors: a list to which the received descriptors are appended (64 at most). They
    ///     are close-on-exec.
    ///   - socket: a connected socket.
    /// - Returns: the number of bytes received; 0 if the peer has closed its end.
    /// - Throws: `EAGAIN` if nothing can be received now, `ECONNRESET` if the peer closed its end
    ///   with unread data, otherwise the errno of recvmsg(2).
    public static func receive(
        into bytes: UnsafeMutableRawBufferPointer, descriptors: inout DescriptorList,
        from socket: borrowing OwnedDescriptor
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
            descriptors.append(OwnedDescriptor(owning: received[index]))
        }
        if isTruncated { descriptors.isTruncated = true }
        return count
    }

    /// Blocks until a descriptor is ready, or the timeout has passed; see poll(2).
    ///
    /// - Parameters:
    ///   - events: the conditions to wait for; ``Readiness/closed`` is reported in any case.
    ///   - socket: any descriptor that poll(2) accepts.
    ///   - timeout: rounded up to whole milliseconds; zero or less waits for 1 ms at most.
    /// - Returns: the conditions that hold; empty if the timeout has passed.
    /// - Throws: the errno of poll(2).
    public static func wait(
        for events: Readiness, on socket: borrowing OwnedDescriptor, timeout: Duration
    ) throws(Errno) -> Readiness {
        var entry = pollfd(fd: socket.rawValue, events: 0, revents: 0)
        if events.contains(.readable) { entry.events |= Int16(POLLIN) }
        if events.contains(.writable) { entry.events |= Int16(POLLOUT) }
        // Rounded up, so that an empty result means that the timeout has passed.
        let milliseconds = max(timeout.nanoseconds, 0) / 1_000_000 + 1
        _ = try systemCall { unsafe poll(&entry, 1, CInt(clamping: milliseconds)) }
        var ready: Readiness = []
        if entry.revents & Int16(POLLIN) != 0 { ready.insert(.readable) }
        if entry.revents & Int16(POLLOUT) != 0 { ready.insert(.writable) }
        if entry.revents & Int16(POLLHUP | POLLERR | POLLNVAL) != 0 { ready.insert(.closed) }
        return ready
    }
}
