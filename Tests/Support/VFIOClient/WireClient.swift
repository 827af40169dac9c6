// SPDX-License-Identifier: Apache-2.0

internal import Glibc
public import Platform
internal import SystemPackage

/// The client end of a connection, which sends valid and invalid messages alike.
public final class WireClient {
    public struct Failure: Error, CustomStringConvertible {
        public let description: String

        public init(_ description: String) { self.description = description }
    }

    /// Called while there is nothing to read. A test that runs the server in the same thread turns
    /// its event loop here; if `nil`, the client sleeps until data arrives.
    public var whileWaiting: (() throws -> Void)?
    /// The time to wait for the server, after which the test fails.
    public var timeout: Duration = .seconds(30)

    /// A class, so that it can be borrowed while other state changes.
    private final class OpenSocket {
        let descriptor: OwnedDescriptor

        init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }
    }

    private var socket: OpenSocket?
    private var nextID: UInt16 = 1

    /// Takes over a connected socket.
    public init(socket: consuming OwnedDescriptor) throws {
        try socket.setNonblocking()
        self.socket = OpenSocket(socket)
    }

    /// Connects to a server's socket.
    public convenience init(path: String) throws {
        try self.init(socket: UnixSocket.connect(to: path))
    }

    /// Creates a pair of connected sockets and passes the server's end to `serve`.
    public static func connected(to serve: (consuming OwnedDescriptor) throws -> Void) throws
        -> WireClient
    {
        var numbers: [CInt] = [-1, -1]
        _ = try systemCall {
            socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &numbers)
        }
        let client = try WireClient(socket: OwnedDescriptor(owning: numbers[0]))
        try serve(OwnedDescriptor(owning: numbers[1]))
        return client
    }

    /// Closes the socket, as the kernel does when a process dies.
    public func close() { socket = nil }

    /// Shuts the socket down for reading and writing.
    public func shutdown() {
        guard let number = socketNumber else { return }
        _ = Glibc.shutdown(number, CInt(SHUT_RDWR))
    }

    /// The kernel's number of the socket.
    public var socketNumber: CInt? { socket?.descriptor.rawValue }

    // MARK: - Bytes

    /// Sends bytes; the descriptors go with the first of them.
    public func send(_ bytes: [UInt8], descriptors: [CInt] = []) throws {
        let deadline = ContinuousClock.now + timeout
        var start = 0
        var descriptors = descriptors
        while start < bytes.count {
            guard let sent = try sendSome(Array(bytes[start...]), descriptors: descriptors) else {
                guard ContinuousClock.now < deadline else {
                    throw Failure("the server does not read")
                }
                try wait(for: .writable)
                continue
            }
            start += sent
            descriptors = []
        }
    }

    /// Sends as much as the socket accepts, and returns the number of bytes; `nil` if it accepts
    /// none.
    public func sendSome(_ bytes: [UInt8], descriptors: [CInt] = []) throws -> Int? {
        guard let socket else { throw Failure("the socket is closed") }
        do {
            return try bytes.withUnsafeBytes {
                try UnixSocket.send($0, descriptors: descriptors, to: socket.descriptor)
            }
        } catch let error as Errno where error == .wouldBlock {
            return nil
        }
    }

    /// The up to `count` bytes of one `recvmsg`; empty at the end of the stream, `nil` if no data
    /// has arrived.
    public func receiveSome(_ count: Int) throws -> [UInt8]? {
        guard let socket else { throw Failure("the socket is closed") }
        var arrived = DescriptorList()
        var bytes = [UInt8](repeating: 0, count: count)
        do {
            let received = try bytes.withUnsafeMutableBytes {
                try UnixSocket.receive(into: $0, descriptors: &arrived, from: socket.descriptor)
            }
            return Array(bytes[..<received])
        } catch let error as Errno where error == .wouldBlock {
            return nil
        } catch let error as Errno where error == .connectionReset {
            return []
        }
    }

    /// Waits for data and returns the bytes of one `recvmsg`.
    public func receiveOnce(upTo count: Int) throws -> [UInt8] {
        let deadline = ContinuousClock.now + timeout
        while true {
            if let bytes = try receiveSome(count) { return bytes }
            guard ContinuousClock.now < deadline else {
                throw Failure("the server does not answer")
            }
            try wait(for: .readable)
        }
    }

    /// Receives exactly `count` bytes.
    public func receive(exactly count: Int) throws -> [UInt8] {
        var bytes: [UInt8] = []
        while bytes.count < count {
            let more = try receiveOnce(upTo: count - bytes.count)
            if more.isEmpty { throw Failure("the server closed the connection") }
            bytes += more
        }
        return bytes
    }

    /// Whether the server has closed the connection, waiting for that for ``timeout``.
    public func isClosedByServer() throws -> Bool {
        while true {
            do {
                if try receiveOnce(upTo: 65536).isEmpty { return true }
            } catch is Failure {
                return false
            }
        }
    }

    /// Calls ``whileWaiting``, or waits up to 100 ms for the socket.
    public func wait(for events: Readiness) throws {
        if let whileWaiting { return try whileWaiting() }
        guard let socket else { throw Failure("the socket is closed") }
        _ = try UnixSocket.wait(for: events, on: socket.descriptor, timeout: .milliseconds(100))
    }

    // MARK: - Messages

    /// Receives a message if its first bytes have arrived; `nil` if not.
    func receiveIfAny() throws -> [UInt8]? {
        guard var header = try receiveSome(16) else { return nil }
        if header.isEmpty { throw Failure("the server closed the connection") }
        header += try receive(exactly: 16 - header.count)
        let size = Int(header.integer(UInt32.self, at: 4))
        guard size >= 16 else { throw Failure("a message of \(size) bytes") }
        return header + (try receive(exactly: size - 16))
    }

    /// A message ID for the next request.
    public func makeID() -> UInt16 {
        defer { nextID &+= 1 }
        return nextID
    }

    public func send(_ message: WireMessage, descriptors: [CInt] = []) throws {
        try send(message.bytes, descriptors: descriptors)
    }

    /// Receives one message, of the size in its header.
    public func receiveMessage() throws -> WireMessage {
        let header = try receive(exactly: 16)
        let size = Int(header.integer(UInt32.self, at: 4))
        guard size >= 16 else { throw Failure("a message of \(size) bytes") }
        return WireMessage(bytes: header + (try receive(exactly: size - 16)))
    }

    /// Sends a request and receives its reply, which must be the next message.
    @discardableResult
    public func request(
        _ command: UInt16, _ payload: [UInt8] = [], flags: UInt32 = 0, descriptors: [CInt] = []
    ) throws -> WireMessage {
        let id = makeID()
        try send(
            WireMessage(id: id, command: command, flags: flags, payload: payload),
            descriptors: descriptors)
        let reply = try receiveMessage()
        guard reply.id == id, reply.command == command, reply.isReply else {
            throw Failure("the reply to command \(command), message \(id), is \(reply)")
        }
        return reply
    }
}
