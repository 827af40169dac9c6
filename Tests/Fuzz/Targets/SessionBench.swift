// SPDX-License-Identifier: Apache-2.0

import Glibc
import GuestKit
import Logging
import Platform
import SystemPackage
import TestKit
import VFIOClient
import VFIOUser

/// A connection, a client at its other end that keeps account of what must be answered, and a clock
/// that is a number.
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
    /// Bytes that wait to be sent.
    private var outgoing: [UInt8] = []
    /// Bytes that the server has, from the beginning of a message on.
    private var sent: [UInt8] = []
    /// Behind this nothing is a message any more.
    private var isBroken = false
    /// Requests without an answer, and how often.
    private var unanswered: [Request: Int] = [:]
    private var received: [UInt8] = []
    /// Copies of its write end are sent to the server.
    private let pipe: TestPipe
    private var mayAsk = false

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

    /// Sends what is queued, or its beginning, and lets the server work.
    func send(atMost count: Int, descriptors: Int = 0) throws {
        var left = min(count, outgoing.count)
        var attached = [CInt](repeating: pipe.writeNumber, count: descriptors)
        for _ in 0..<1000 where left > 0 && ends.isEmpty {
            guard
                let done = try? client.sendSome(
                    Array(outgoing.prefix(left)), descriptors: attached)
            else {
                try settle()
                continue
            }
            account(Array(outgoing.prefix(done)))
            outgoing.removeFirst(done)
            left -= done
            attached = []
        }
        try settle()
    }

    /// Reads what was sent as the server must.
    private func account(_ bytes: [UInt8]) {
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

    /// Turns the loop until nothing happens any more.
    private func settle() throws {
        var turns = 0
        while loop.turn() {
            turns += 1
            try require(turns < 10_000, "the connection is never at rest")
            try receive()
        }
        try receive()
    }

    func pass(_ duration: Duration) throws {
        loop.advance(to: loop.now + duration)
        try settle()
    }

    /// The device reads or writes memory that the client serves. The client has closed its sending
    /// side, so that the wait is over with what it has said already.
    func accessMemory(address: UInt64, count: Int, writes: Bool) throws {
        guard let connection, ends.isEmpty, let number = client.socketNumber else { return }
        let bytes = outgoing
        _ = try? client.sendSome(bytes)
        account(bytes)
        outgoing = []
        _ = Glibc.shutdown(number, CInt(SHUT_WR))
        mayAsk = true
        var memory = [UInt8](repeating: 0, count: count)
        try memory.withUnsafeMutableBytes { memory in
            do throws(Errno) {
                if writes {
                    try connection.writeMemory(UnsafeRawBufferPointer(memory), at: address)
                } else {
                    try connection.readMemory(into: memory, at: address)
                }
            } catch {
                try require(error.rawValue != 0, "an access fails without an error")
            }
        }
        try settle()
    }

    /// Reads the server's messages: replies to what was asked, nothing else, nothing twice.
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
                try require(mayAsk && isAccess, "the server asks for \(message)")
                continue
            }
            let request = Request(id: message.id, command: message.command)
            guard let count = unanswered[request], count > 0 else {
                throw Violation("an answer to nothing: \(message)")
            }
            unanswered[request] = count - 1
        }
    }

    // MARK: - The end

    func finish() throws {
        try send(atMost: .max)
        device.closeEvents()
        try settle()
        if ends.isEmpty {
            try require(!isBroken, "the connection outlives a broken stream")
            let count = unanswered.values.reduce(0, +)
            try require(count == 0, "\(count) requests without an answer")
        }
        let hadEnded = !ends.isEmpty
        client.close()
        _ = holdsEventually {
            _ = loop.turn()
            return !ends.isEmpty
        }
        try require(ends.count == 1, "the connection ends \(ends.count) times")
        try require(hadEnded || ends == [.clientDisconnected], "the connection ends with \(ends)")
        connection = nil
        try require(pipe.areCopiesClosed(), "a descriptor of the client is kept")
        if let violation = device.violation {
            throw Violation("the device is asked for \(violation)")
        }
    }
}
