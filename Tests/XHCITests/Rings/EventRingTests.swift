// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Event rings: laps, segment tables, full rings (xHCI 4.9.4, 5.5.2.3).
struct EventRingTests {
    private func guest(_ rings: [[Int]]) throws -> Guest {
        var options = GuestDriver.Options()
        options.eventRings = rings
        return try Guest(options: options)
    }

    private func queue(_ count: Int, on guest: Guest) -> [GuestAddress] {
        (0..<count).map { _ in
            let address = guest.driver.commandRing.push(.command(.noOpCommand))
            guest.driver.ringDoorbell(slot: 0, target: 0)
            return address
        }
    }

    @Test(arguments: [[16], [17], [16, 16], [16, 32, 20], Array(repeating: 16, count: 16), [208]])
    func `events fill all segments in order for many laps`(segments: [Int]) throws {
        let guest = try guest([segments])
        for _ in 0..<segments.reduce(0, +) * 3 + 1 { #expect(guest.answersCommands) }
        #expect(guest.memory.damagedCanaries().isEmpty)
    }

    @Test(arguments: [[16], [16, 16]])
    func `a full ring has one Event Ring Full Error and continues when it has space`(
        segments: [Int]
    ) throws {
        let guest = try guest([segments])
        let driver = guest.driver
        driver.updatesDequeuePointer = false
        let capacity = segments.reduce(0, +)
        var sent = queue(capacity - 3, on: guest)
        var got = driver.takeAll()
        #expect(got.map(\.pointer) == sent)
        // More events than the ring has space for.
        var expected: [GuestAddress] = []
        sent = queue(20, on: guest)
        expected += sent
        got = driver.takeAll()
        let full = got.filter { $0.kind == .hostController }
        #expect(full.map(\.code) == [.eventRingFull])
        #expect(got.last?.kind == .hostController)
        driver.updatesDequeuePointer = true
        driver.acknowledge()
        got += driver.takeAll()
        #expect(got.filter { $0.isCommandCompletion }.map(\.pointer) == expected)
        #expect(guest.answersCommands)
    }

    @Test func `events that the driver has not consumed are not overwritten`() throws {
        let guest = try guest([[16]])
        guest.driver.updatesDequeuePointer = false
        _ = queue(15, on: guest)
        guest.machine.pass(.milliseconds(1))
        let ring = guest.driver.eventRings[0].segments[0].address
        let before = guest.memory.bytes(at: ring, count: 16 * 14)
        _ = queue(12, on: guest)
        guest.machine.pass(.milliseconds(1))
        #expect(guest.memory.bytes(at: ring, count: 16 * 14) == before)
    }

    @Test func `transfer events wait for space, too`() throws {
        let guest = try guest([[16]])
        let driver = guest.driver
        let device = TestDevice { $0.endpoint == .control ? nil : .give([1]) }
        let endpoint = try guest.plug(device, .bulkIn(1, segments: [200]))
        driver.takeAll()
        driver.updatesDequeuePointer = false
        let buffer = guest.memory.allocate(16)
        let addresses = (0..<100).map { _ in
            endpoint.submit(.normal(buffer, 16, .interruptOnCompletion))
        }
        var got: [GuestEvent] = []
        for _ in 0..<40 where got.filter({ $0.isTransfer }).count < 100 {
            got += driver.takeAll(after: .milliseconds(1))
            driver.acknowledge()
        }
        #expect(got.filter { $0.isTransfer }.map(\.pointer) == addresses)
    }

    /// Consumes all events, and those that wait for space.
    private func drain(_ guest: Guest) -> [GuestEvent] {
        guest.driver.updatesDequeuePointer = true
        var events: [GuestEvent] = []
        for _ in 0..<80 {
            guest.driver.acknowledge()
            events += guest.driver.takeAll(after: .milliseconds(1))
        }
        return events
    }

    @Test func `a command ring that is stopped again and again adds one event to a full ring`()
        throws
    {
        let guest = try guest([[16]])
        let machine = guest.machine
        guest.driver.updatesDequeuePointer = false
        _ = queue(30, on: guest)
        machine.pass(.milliseconds(1))
        for _ in 0..<500 {
            guest.driver.ringDoorbell(slot: 0, target: 0)
            machine.pass(.microseconds(10))
            // CS, only while CRR is set: otherwise the write would be a new pointer.
            guard machine.read32(guest.registers.commandRing) & 8 != 0 else { continue }
            machine.write64(2, at: guest.registers.commandRing)
            machine.pass(.microseconds(10))
        }
        let stops = drain(guest).filter { $0.code == .commandRingStopped }
        #expect(stops.count == 1)
        #expect(guest.answersCommands)
    }

    @Test func `wraps of MFINDEX do not accumulate while the ring is full`() throws {
        let guest = try guest([[16]])
        let machine = guest.machine
        machine.write32(
            machine.read32(guest.registers.command) | GuestDriver.Command.wrapEventEnable,
            at: guest.registers.command)
        guest.driver.updatesDequeuePointer = false
        _ = queue(30, on: guest)
        machine.pass(.microseconds(125 * 0x4000 * 50))
        let wraps = drain(guest).filter { $0.kind == .microframeWrap }
        #expect(wraps.count <= 1)
        #expect(guest.answersCommands)
    }

    @Test(arguments: 0...16)
    func `the controller survives segments of any size`(count: Int) throws {
        let guest = try guest([[256]])
        let driver = guest.driver
        try driver.halt()
        let memory = guest.memory
        let segment = memory.allocate(16 * 16, alignment: 64)
        let table = memory.allocate(16)
        memory.store(segment.rawValue, at: table)
        memory.store(UInt64(count), at: table + 8)
        let base = guest.registers.interrupter(0)
        guest.machine.write32(1, at: base + 8)
        guest.machine.write64(segment.rawValue, at: base + 24)
        guest.machine.write64(table.rawValue, at: base + 16)
        try driver.run()
        _ = queue(20, on: guest)
        guest.machine.pass(.milliseconds(10))
        #expect(memory.damagedCanaries().isEmpty)
        #expect(!guest.machine.isSpinning)
        try guest.expectRecovery()
    }

    @Test(arguments: [0, 1, 16, 17, 0xffff] as [UInt32])
    func `the controller survives segment tables of any size`(size: UInt32) throws {
        let guest = try guest([[256]])
        try guest.driver.halt()
        guest.machine.write32(size, at: guest.registers.interrupter(0) + 8)
        guest.machine.write64(
            guest.driver.eventRings[0].table.rawValue, at: guest.registers.interrupter(0) + 16)
        try guest.driver.run()
        _ = queue(25, on: guest)
        guest.machine.pass(.milliseconds(10))
        #expect(!guest.machine.isSpinning)
        try guest.expectRecovery()
    }

    @Test func `the controller survives a segment table or segment outside guest memory`() throws {
        let guest = try guest([[256]])
        for inTable in [true, false] {
            try guest.driver.start()
            try guest.driver.halt()
            let table = guest.memory.allocate(16)
            guest.memory.store(guest.nowhere.rawValue, at: table)
            guest.memory.store(UInt64(64), at: table + 8)
            guest.machine.write64(
                inTable ? guest.nowhere.rawValue : table.rawValue,
                at: guest.registers.interrupter(0) + 16)
            try guest.driver.run()
            _ = queue(5, on: guest)
            guest.machine.pass(.milliseconds(10))
            #expect(guest.hasFailed)
            try guest.expectRecovery()
        }
    }

    @Test func `the controller survives a segment table of all ones`() throws {
        let guest = try guest([[256]])
        try guest.driver.halt()
        let table = guest.memory.allocate(64)
        guest.memory.fill(0xff, at: table, count: 64)
        guest.machine.write32(4, at: guest.registers.interrupter(0) + 8)
        guest.machine.write64(table.rawValue, at: guest.registers.interrupter(0) + 16)
        try guest.driver.run()
        _ = queue(5, on: guest)
        guest.machine.pass(.milliseconds(10))
        #expect(!guest.machine.isSpinning)
        try guest.expectRecovery()
    }

    @Test(arguments: [UInt64(0), UInt64.max, 0x8, 0x1234_5678])
    func `the controller survives an ERDP outside the ring`(pointer: UInt64) throws {
        let guest = try guest([[16]])
        guest.driver.updatesDequeuePointer = false
        guest.machine.write64(pointer, at: guest.registers.interrupter(0) + 24)
        _ = queue(25, on: guest)
        guest.machine.pass(.milliseconds(10))
        #expect(!guest.machine.isSpinning)
        try guest.expectRecovery()
    }

    @Test func `ERDP may be written in two halves, in either order`() throws {
        let guest = try guest([[16]])
        for _ in 0..<100 {
            #expect(guest.answersCommands)
            // The driver writes the low half first; this repeats the write in the other order.
            let value = guest.driver.eventRings[0].dequeueRegister
            let offset = guest.registers.interrupter(0) + 24
            guest.machine.write32(UInt32(value >> 32), at: offset + 4)
            guest.machine.write32(UInt32(truncatingIfNeeded: value) | 8, at: offset)
        }
    }
}
