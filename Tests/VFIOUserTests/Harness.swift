// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import Logging
import Platform
import SystemPackage
import TestKit
import VFIOClient

@testable import VFIOUser

/// A connection with a test device, and a client on the same thread at the other end.
final class Harness {
    let loop: EpollLoop
    let device = TestDevice()
    let client: WireClient
    private(set) var connection: Connection?
    private(set) var ends: [Connection.End] = []

    init() throws {
        let loop = try EpollLoop()
        self.loop = loop
        var server: OwnedDescriptor?
        client = try WireClient.connected { server = consume $0 }
        client.whileWaiting = { try loop.turn(until: loop.now + .milliseconds(10)) }
        guard let server = server.take() else { return }
        connection = try Connection(
            socket: server, device: device, loop: loop, logger: .silent
        ) { [unowned self] in ends.append($0) }
    }

    /// A harness with a negotiated session of a client that serves memory.
    static func ready() throws -> Harness {
        let harness = try Harness()
        try harness.negotiate()
        return harness
    }

    func negotiate(_ json: String = #"{"capabilities":{"max_msg_fds":16}}"#) throws {
        let reply = try client.request(
            WireMessage.Command.version,
            WireMessage.version(minor: 1, json: Array(json.utf8) + [0]))
        guard !reply.isError else { throw WireClient.Failure("not negotiated: \(reply)") }
    }

    /// Runs the loop until all received messages are handled.
    func runUntilIdle() throws {
        for _ in 0..<4 { try loop.turn(until: loop.now) }
    }

    /// Sends bytes and returns the bytes of the immediate reply.
    func exchange(_ bytes: [UInt8]) throws -> [UInt8] {
        try client.send(bytes)
        try runUntilIdle()
        return try client.receiveSome(1 << 21) ?? []
    }

    /// Whether the server answers a register read.
    func isAlive() throws -> Bool {
        let reply = try client.request(
            WireMessage.Command.regionRead,
            WireMessage.region(RegionIndex.configuration, offset: 0x40, count: 4))
        return !reply.isError && reply.payload.suffix(4) == [0x11, 0x00, 19, 0x00]
    }

    /// Waits for the connection to end.
    func end() throws -> Connection.End? {
        let deadline = ContinuousClock.now + .seconds(30)
        while ends.isEmpty, ContinuousClock.now < deadline {
            try loop.turn(until: loop.now + .milliseconds(10))
        }
        return ends.count == 1 ? ends[0] : nil
    }

    enum RegionIndex {
        static let configuration = UInt32(RegionDescription.PCI.configuration)
    }
}

/// The bytes that hexadecimal digits represent. Spaces and comments, from `#` to the end of a line,
/// are ignored.
func hex(_ text: String) -> [UInt8] {
    let digits = text.split(separator: "\n").flatMap { line in
        line.prefix { $0 != "#" }.compactMap(\.hexDigitValue)
    }
    return stride(from: 0, to: digits.count - 1, by: 2).map {
        UInt8(digits[$0] << 4 | digits[$0 + 1])
    }
}

/// A client on a thread of its own, for tests in which the server blocks until the client replies.
final class ClientThread: Sendable {
    private let outcome = Locked<Result<Void, any Error>?>(nil)

    init(_ body: @escaping @Sendable () throws -> Void) {
        let thread = Thread { [self] in
            let result = Result { try body() }
            outcome.withLock { $0 = result }
        }
        thread.start()
    }

    /// Whether the client has ended.
    var isFinished: Bool { outcome.withLock { $0 != nil } }

    /// Runs the loop until the client has ended, and throws the error of the client.
    func join(_ loop: EpollLoop) throws {
        let deadline = ContinuousClock.now + .seconds(60)
        while !isFinished {
            guard ContinuousClock.now < deadline else {
                throw WireClient.Failure("the client has not ended")
            }
            try loop.turn(until: loop.now + .milliseconds(5))
        }
        try outcome.withLock { $0 }?.get()
    }
}
