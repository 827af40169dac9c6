// SPDX-License-Identifier: Apache-2.0

import Glibc
import GuestKit
import Logging
import Platform
import SystemPackage
import TestKit
import VFIOClient
import VFIOUser

/// A connection on a simulated loop, and a client that counts the requests that the server must
/// answer.
final class SessionBench {
    private struct Request: Hashable {
        let id: UInt16
        let command: UInt16
    }

    let device = SessionDevice()
    private let loop = SimulatedLoop()
    private let client: WireClient
    private var connection: Connection?
    private var ends: [Connection.End] = []
    private var nextID: UInt16 = 0
    /// Bytes that are queued and not sent yet.
    private var outgoing: [UInt8] = []
    /// The beginning of a message that has been sent in part.
    private var sent: [UInt8] = []
    /// Whether a header with an invalid size or type has been sent: the bytes after it have no
    /// message boundaries.
    private var isBroken = false
    /// The number of replies that the server must still send for each request.
    private var unanswered: [Request: Int] = [:]
    private var received: [UInt8] = []
    /// The pipe whose write end is attached to messages.
    private let pipe: TestPipe
    /// Whether the server may send DMA_READ and DMA_WRITE.
    private var expectsAccesses = false

    init() throws {
        pipe = try TestPipe()
        var server: OwnedDescriptor?
        client = try WireClient.connected { server = consume $0 }
        guard let server = server.take() else { throw Violation("no pair of sockets") }
        connection = try Connection(
            socket: server, device: device, loop: loop, logger: .silent
        ) { [unowned self] in ends.append($0) }
    }

    // MARK: - The client

    func queue(raw bytes: [UInt8]) { outgoing += bytes }

    func queue(_ command: UInt16, _ payload: [UInt8], flags: UInt32 = 0) {
        nextID &+= 1
        outgoing +=
            WireMessage(id: nextID, command: command, flags: flags, payload: payload).bytes
    }

    /// Sends up to `count` of the queued bytes and runs the server until it is idle.
    func send(atMost count: Int, descriptors: Int = 0) throws {
        var left = min(count, outgoing.count)
        var attached = [CInt](repeating: pipe.writeNumber, count: descriptors)
        for _ in 0..<1000 where left > 0 && ends.isEmpty {
            guard
                let written = try? client.sendSome(
                    Array(outgoing.prefix(left)), descriptors: attached)
            else {
                try runUntilIdle()
                continue
            }
            countRequests(in: Array(outgoing.prefix(written)))
            outgoing.removeFirst(written)
            left -= written
            attached = []
        }
        try runUntilIdle()
    }

    /// Parses the sent bytes as the server must, and counts the requests that want a reply.
    private func countRequests(in bytes: [UInt8]) {
        sent += bytes
        while !isBroken, sent.count >= 16 {
            let size = Int(sent.integer(UInt32.self, at: 4))
            let type = sent.integer(UInt32.self, at: 8) & 0xf
            guard size >= 16, size <= VFIOUserLimits.messageSize else {
                isBroken = true
                return
            }
            guard sent.count >= size else { return }
            let message = WireMessage(bytes: Array(sent.prefix(size)))
            sent.removeFirst(size)
            if type > 1 { isBroken = true }
            guard type == 0 else { continue }
            guard message.flags & WireMessage.noReply == 0 else { continue }
            unanswered[Request(id: message.id, command: message.command), default: 0] += 1
        }
    }

    // MARK: - The server

    /// Runs the loop until no event is ready, and receives the replies.
    private func runUntilIdle() throws {
        var turns = 0
        while loop.turn() {
            turns += 1
            try require(turns < 10_000, "the connection has events without end")
            try receive()
        }
        try receive()
    }

    func advance(by duration: Duration) throws {
        loop.advance(to: loop.now + duration)
        try runUntilIdle()
    }

    /// Lets the device read or write memory that the client serves.
    ///
    /// The client has shut down its sending side by then, so that the access ends with the replies
    /// that are in the socket already, without a timeout.
    func accessMemory(address: UInt64, count: Int, writes: Bool) throws {
        guard let connection, ends.isEmpty, let number = client.socketNumber else { return }
        let bytes = outgoing
        _ = try? client.sendSome(bytes)
        countRequests(in: bytes)
        outgoing = []
        _ = Glibc.shutdown(number, CInt(SHUT_WR))
        expectsAccesses = true
        var memory = [UInt8](repeating: 0, count: count)
        try memory.withUnsafeMutableBytes { memory in
            do throws(Errno) {
                if writes {
                    try connection.writeMemory(UnsafeRawBufferPointer(memory), at: address)
                } else {
                    try connection.readMemory(into: memory, at: address)
                }
            } catch {
                try require(error.rawValue != 0, "an access has failed without an error number")
            }
        }
        try runUntilIdle()
    }

    /// Receives the server's messages and checks that each one is the only reply to a request.
    private func receive() throws {
        while let bytes = try client.receiveSome(1 << 16), !bytes.isEmpty {
            received += bytes
            if bytes.count < 1 << 16 { break }
        }
        while received.count >= 16 {
            let size = Int(received.integer(UInt32.self, at: 4))
            try require(
                size >= 16 && size <= VFIOUserLimits.messageSize, "a message of \(size) bytes")
            guard received.count >= size else { return }
            let message = WireMessage(bytes: Array(received.prefix(size)))
            received.removeFirst(size)
            guard message.isReply else {
                let isAccess =
                    message.command == WireMessage.Command.dmaRead
                    || message.command == WireMessage.Command.dmaWrite
                try require(
                    expectsAccesses && isAccess, "the server has sent the request \(message)")
                continue
            }
            let request = Request(id: message.id, command: message.command)
            guard let count = unanswered[request], count > 0 else {
                throw Violation("a reply without a request: \(message)")
            }
            unanswered[request] = count - 1
        }
    }

    // MARK: - The end

    func finish() throws {
        try send(atMost: .max)
        device.closeEvents()
        try runUntilIdle()
        if ends.isEmpty {
            try require(!isBroken, "the connection is open after an invalid header")
            let count = unanswered.values.reduce(0, +)
            try require(count == 0, "\(count) requests have no reply")
        }
        let hadEnded = !ends.isEmpty
        client.close()
        _ = holdsEventually {
            _ = loop.turn()
            return !ends.isEmpty
        }
        try require(ends.count == 1, "the connection has ended \(ends.count) times")
        try require(
            hadEnded || ends == [.clientDisconnected], "the connection has ended with \(ends)")
        connection = nil
        try require(pipe.areCopiesClosed(), "a descriptor of the client is still open")
        if let violation = device.violation {
            throw Violation("the session has called its device with \(violation)")
        }
    }
}
