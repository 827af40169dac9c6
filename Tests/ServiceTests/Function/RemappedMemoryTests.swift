// SPDX-License-Identifier: Apache-2.0

import Platform
import Service
import TestKit
import Testing
import VFIOClient

/// Guest memory that a VMM unmaps and maps again while the controller runs.
///
/// QEMU does so when firmware changes the protection of the memory that shadows its ROMs: it unmaps
/// all of main memory and maps it again in other regions.
private final class RemappedMemory {
    private let bench: Bench
    private let ram: SharedMemory
    let client: QEMUClient

    private enum Register {
        static let doorbellOffset: UInt64 = 0x14
        // Offsets in the operational registers.
        static let command: UInt64 = 0
        static let status: UInt64 = 4
        static let commandRing: UInt64 = 0x18
    }

    private static let ring: UInt64 = 0x1000

    /// Starts a controller and rings the doorbell of its command ring once.
    init() throws {
        bench = try Bench()
        ram = try SharedMemory(size: 1 << 20)
        client = QEMUClient(
            wire: try bench.connect(), memory: [.init(address: 0, contents: ram, isShared: true)])
        try client.start()
        let operational = UInt64(try client.readRegister(0, as: UInt8.self))
        try client.writeRegister(operational + Register.commandRing, Self.ring | 1)
        try client.writeRegister(operational + Register.command, UInt32(1))
        try ringDoorbell()
        #expect(try isCommandRingRunning())
        #expect(try !hasFailed())
    }

    var now: Duration { bench.loop.now }

    func remove() throws { try client.remove(address: 0) }

    func add() throws { try client.add(.init(address: 0, contents: ram, isShared: true)) }

    /// Rings the doorbell of the command ring. The write is posted: it has no reply.
    func ringDoorbell() throws {
        let doorbells: UInt32 = try client.readRegister(Register.doorbellOffset)
        try client.writeRegister(UInt64(doorbells & ~3), UInt32(0))
    }

    /// CRR.
    func isCommandRingRunning() throws -> Bool {
        let operational = UInt64(try client.readRegister(0, as: UInt8.self))
        return try client.readRegister(operational + Register.commandRing, as: UInt32.self) & 8 != 0
    }

    /// HSE.
    func hasFailed() throws -> Bool {
        let operational = UInt64(try client.readRegister(0, as: UInt8.self))
        return try client.readRegister(operational + Register.status, as: UInt32.self) & 4 != 0
    }

    /// Runs one turn of the loop without waiting.
    func turn() throws { try bench.server.turn(until: now) }

    func turn(for time: Duration) throws {
        let end = now + time
        while now < end { try bench.server.turn(until: end) }
    }
}

struct RemappedMemoryTests {
    /// The controller is paused for 50 ms after an unmap. An attempt that takes longer, because the
    /// machine is busy, proves nothing and is repeated.
    @Test("memory that is mapped again in time causes no error")
    func remapped() throws {
        let isComplete = try holdsEventually {
            let memory = try RemappedMemory()
            // The controller fetches the command only after the memory has been removed.
            try memory.ringDoorbell()
            let start = memory.now
            try memory.remove()
            for _ in 0..<5 { try memory.turn() }
            try memory.add()
            guard memory.now - start < .milliseconds(50) else { return false }
            #expect(try !memory.hasFailed())
            #expect(try memory.isCommandRingRunning())
            return true
        }
        #expect(isComplete, "no attempt took less than 50 ms")
    }

    @Test("memory that stays unmapped is an error at the guest's next register write")
    func unmappedWithDoorbell() throws {
        let memory = try RemappedMemory()
        try memory.remove()
        try memory.ringDoorbell()
        try memory.turn()
        #expect(try memory.hasFailed())
    }

    @Test("memory that stays unmapped is an error after 50 ms without a register write")
    func unmappedWithoutAccess() throws {
        let memory = try RemappedMemory()
        try memory.ringDoorbell()
        try memory.remove()
        try memory.turn(for: .milliseconds(100))
        #expect(try memory.hasFailed())
    }
}
