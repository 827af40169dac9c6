// SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import Platform
import Service
import Testing
import VFIOClient

/// Guest memory that a monitor takes away and gives back while the controller runs.
///
/// QEMU does so whenever firmware protects or opens the memory that shadows its ROMs: all of main
/// memory goes and comes back in other pieces, with a moment between in which there is none.
struct RearrangedMemoryTests {
    private let loop: EpollLoop
    private let server: Server
    private let wire: WireClient
    private let ram: SharedMemory
    private let path = "/tmp/usbvfiod-memory-\(UUID().uuidString.prefix(8))"

    private enum Register {
        static let doorbellOffset: UInt64 = 0x14
        // From the end of the capability registers on.
        static let command: UInt64 = 0
        static let status: UInt64 = 4
        static let commandRing: UInt64 = 0x18
    }

    private static let ring: UInt64 = 0x1000

    init() throws {
        loop = try EpollLoop()
        server = Server(
            loop: loop, logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
        try server.listen(on: ListeningSocket(bindingTo: path))
        wire = try WireClient(path: path)
        ram = try SharedMemory(size: 1 << 20)
        let (loop, server) = (loop, server)
        wire.whileWaiting = { try server.turn(until: loop.now + .milliseconds(2)) }
    }

    /// A controller that runs, and has been rung for a command once.
    private func start() throws -> QEMUClient {
        let client = QEMUClient(
            wire: wire, memory: [.init(address: 0, contents: ram, isShared: true)])
        try client.start()
        let operational = UInt64(try client.readRegister(0, as: UInt8.self))
        try client.writeRegister(operational + Register.commandRing, Self.ring | 1)
        try client.writeRegister(operational + Register.command, UInt32(1))
        try ringDoorbell(client)
        #expect(try isCommandRingRunning(client))
        #expect(try !hasFailed(client))
        return client
    }

    /// Rings for a command. The write is posted: it goes out, and nothing waits for it.
    private func ringDoorbell(_ client: QEMUClient) throws {
        let doorbells: UInt32 = try client.readRegister(Register.doorbellOffset)
        try client.writeRegister(UInt64(doorbells & ~3), UInt32(0))
    }

    private func isCommandRingRunning(_ client: QEMUClient) throws -> Bool {
        let operational = UInt64(try client.readRegister(0, as: UInt8.self))
        return try client.readRegister(operational + Register.commandRing, as: UInt32.self) & 8 != 0
    }

    /// Whether the host system error is set.
    private func hasFailed(_ client: QEMUClient) throws -> Bool {
        let operational = UInt64(try client.readRegister(0, as: UInt8.self))
        return try client.readRegister(operational + Register.status, as: UInt32.self) & 4 != 0
    }

    private func turn(for time: Duration) throws {
        let end = loop.now + time
        while loop.now < end { try server.turn(until: end) }
    }

    @Test("memory that comes back in pieces is not missed in between")
    func rearranged() throws {
        let client = try start()
        // The controller comes to look for the command only when the memory is gone already.
        try ringDoorbell(client)
        try client.remove(address: 0)
        // Several turns without any memory.
        for _ in 0..<5 { try server.turn(until: loop.now) }
        try client.add(.init(address: 0, contents: ram, isShared: true))
        #expect(try !hasFailed(client))
        #expect(try isCommandRingRunning(client))
    }

    @Test("memory that stays away is an error when the guest goes on")
    func staysAway() throws {
        let client = try start()
        try client.remove(address: 0)
        try ringDoorbell(client)
        try server.turn(until: loop.now)
        #expect(try hasFailed(client))
    }

    @Test("the controller does not rest for long, though the guest does nothing")
    func restEnds() throws {
        let client = try start()
        try ringDoorbell(client)
        try client.remove(address: 0)
        try turn(for: .milliseconds(100))
        #expect(try hasFailed(client))
    }
}
