// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// Stream sockets of the UNIX domain: bytes, and descriptors that travel with them.
public enum UnixSocket {
    /// Connects to the socket at a path. The descriptor is non-blocking.
    ///
    /// - Throws: `ECONNREFUSED` if nobody listens there, `EAGAIN` if too many others wait.
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

    /// Sends bytes, and descriptors with the first of them; returns how many bytes went out.
    ///
    /// - Throws: `EAGAIN` if none can be sent now.
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

    /// Receives bytes and adds the descriptors that came with them to a list; zero bytes mean that the
    /// peer has closed its side.
    ///
    /// The kernel never joins the bytes after a message with descriptors to that message, but it does
    /// join those before it.
    ///
    /// - Throws: `EAGAIN` if there is nothing now.
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

    /// Waits until the socket is ready for one of `events` or the time is over; empty means the latter.
    public static func wait(
        for events: Readiness, on socket: borrowing OwnedDescriptor, timeout: Duration
    ) throws(Errno) -> Readiness {
        var entry = pollfd(fd: socket.rawValue, events: 0, revents: 0)
        if events.contains(.readable) { entry.events |= Int16(POLLIN) }
        if events.contains(.writable) { entry.events |= Int16(POLLOUT) }
        // Rounded up, so that the time is really over when nothing happened.
        let milliseconds = max(timeout.nanoseconds, 0) / 1_000_000 + 1
        _ = try systemCall { unsafe poll(&entry, 1, CInt(clamping: milliseconds)) }
        var ready: Readiness = []
        if entry.revents & Int16(POLLIN) != 0 { ready.insert(.readable) }
        if entry.revents & Int16(POLLOUT) != 0 { ready.insert(.writable) }
        if entry.revents & Int16(POLLHUP | POLLERR | POLLNVAL) != 0 { ready.insert(.closed) }
        return ready
    }
}
