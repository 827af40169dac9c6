// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Bulk and interrupt TDs: chains, flags, residues, immediate data, Event Data
/// (xHCI 4.10, 4.11.2.1, 4.11.5.2, 6.4.1.1).
struct NormalTransferTests {
    let guest: Guest
    let device = TestDevice()
    let input: GuestEndpoint
    let output: GuestEndpoint
    let buffer: GuestAddress
    var driver: GuestDriver { guest.driver }

    init() throws {
        guest = try Guest()
        let endpoints = try guest.plug(device).configure(.bulkIn(1), .bulkOut(1))
        input = endpoints[0]
        output = endpoints[1]
        buffer = guest.memory.allocate(0x40000, alignment: 65536)
    }

    private func give(_ count: Int) {
        device.onTransfer = { _ in .give((0..<count).map { UInt8(truncatingIfNeeded: $0) }) }
    }

    // MARK: - Length

    @Test(arguments: [1, 511, 512, 513, 4096, 65535, 65536, 65537, 200_000])
    func `bytes arrive unchanged in both directions`(count: Int) throws {
        let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 5 &+ $0 >> 8) }
        device.onTransfer = { $0.direction == .in ? .give(bytes) : .accept }
        #expect(try input.receive(count) == bytes)
        #expect(try output.send(bytes) == count)
        #expect(device.records.last?.bytes == bytes)
        #expect(guest.memory.damagedCanaries().isEmpty)
    }

    @Test func `a TRB moves 64 KiB`() throws {
        give(65536)
        let address = input.submit(.normal(buffer, 65536, .interruptOnCompletion))
        let event = try input.event()
        #expect(event.code == .success)
        #expect(event.pointer == address)
        #expect(event.length == 0)
        #expect(device.records.last?.count == 65536)
    }

    @Test func `an empty TD is an empty packet`() throws {
        device.onTransfer = { _ in .accept }
        output.submit(.normal(buffer, 0, .interruptOnCompletion))
        let event = try output.event()
        #expect(event.code == .success)
        #expect(event.length == 0)
        #expect(device.records.last?.count == 0)
    }

    @Test(arguments: [1, 2, 7, 31, 100])
    func `a chain is one transfer with one event`(parts: Int) throws {
        give(parts * 100)
        let trbs = (0..<parts).map { number in
            GuestTRB.normal(
                buffer + number * 1000, 100,
                number == parts - 1 ? .interruptOnCompletion : .chain)
        }
        let addresses = try longRing(parts + 1).submit(trbs)
        let events = driver.takeAll()
        #expect(events.count == 1)
        #expect(events.first?.pointer == addresses.last)
        #expect(events.first?.code == .success)
        #expect(device.records.filter { $0.endpoint.rawValue == 0x81 }.count == 1)
        #expect(device.records.last?.count == parts * 100)
        for part in 0..<parts {
            #expect(
                guest.memory.load(UInt8.self, at: buffer + part * 1000)
                    == UInt8(truncatingIfNeeded: part * 100))
        }
    }

    /// The IN endpoint with a ring of `count` TRBs.
    private func longRing(_ count: Int) throws -> GuestEndpoint {
        try input.stop()
        input.replaceRing(GuestRing(guest.memory, segmentSizes: [count + 1]))
        try input.setDequeuePointer()
        _ = driver.takeAll(after: .milliseconds(1))
        return input
    }

    @Test func `empty TRBs in a chain are no packets`() throws {
        device.onTransfer = { _ in .accept }
        guest.memory.write([1, 2, 3], at: buffer)
        output.submit([
            .normal(buffer, 0, .chain), .normal(buffer, 2, .chain), .normal(buffer, 0, .chain),
            .normal(buffer + 2, 1, .interruptOnCompletion),
        ])
        #expect(try output.event().code == .success)
        #expect(device.records.last?.bytes == [1, 2, 3])
    }

    // MARK: - Flags

    @Test func `each TRB of a chain with IOC has an event`() throws {
        give(300)
        let addresses = input.submit([
            .normal(buffer, 100, [.chain, .interruptOnCompletion]),
            .normal(buffer + 100, 100, .chain),
            .normal(buffer + 200, 100, .interruptOnCompletion),
        ])
        let events = driver.takeAll()
        #expect(events.map(\.pointer) == [addresses[0], addresses[2]])
        #expect(events.allSatisfy { $0.code == .success && $0.length == 0 })
    }

    @Test func `without IOC there is no event`() throws {
        give(10)
        input.submit(.normal(buffer, 10))
        #expect(driver.takeAll().isEmpty)
        #expect(guest.memory.load(UInt8.self, at: buffer + 9) == 9)
    }

    @Test func `an event with BEI raises no interrupt`() throws {
        give(10)
        _ = driver.takeAll()
        let before = guest.machine.interrupts.total
        input.submit(.normal(buffer, 10, [.interruptOnCompletion, .blockEventInterrupt]))
        #expect(try input.event().code == .success)
        guest.machine.pass(.milliseconds(10))
        #expect(guest.machine.interrupts.total == before)
        input.submit(.normal(buffer, 10, .interruptOnCompletion))
        #expect(try input.event().code == .success)
        guest.machine.pass(.milliseconds(10))
        #expect(guest.machine.interrupts.total == before + 1)
    }

    @Test func `BEI has no effect on events that IOC did not request`() throws {
        give(4)
        _ = driver.takeAll()
        let before = guest.machine.interrupts.total
        input.submit(.normal(buffer, 10, [.interruptOnShortPacket, .blockEventInterrupt]))
        #expect(try input.event().code == .shortPacket)
        guest.machine.pass(.milliseconds(10))
        #expect(guest.machine.interrupts.total == before + 1)
        device.onTransfer = { _ in .end(.stalled, transferred: 0) }
        input.submit(.normal(buffer, 10, [.interruptOnCompletion, .blockEventInterrupt]))
        #expect(try input.event().code == .stall)
        guest.machine.pass(.milliseconds(10))
        #expect(guest.machine.interrupts.total == before + 2)
    }

    @Test(arguments: 0...8)
    func `immediate data reaches the device`(count: Int) throws {
        device.onTransfer = { _ in .accept }
        let bytes = (0..<count).map { UInt8($0 + 1) }
        output.submit(.immediate(bytes, .interruptOnCompletion))
        #expect(try output.event().code == .success)
        #expect(device.records.last?.bytes == bytes)
    }

    @Test(arguments: [9, 100, 65536])
    func `the controller survives more than 8 bytes of immediate data`(count: Int) throws {
        device.onTransfer = { _ in .accept }
        output.submit(
            GuestTRB(
                .normal, parameter: .max, status: UInt32(count),
                flags: [.immediateData, .interruptOnCompletion]))
        let events = driver.takeAll()
        #expect(events.map(\.code) == [.trbError])
        #expect(device.records.allSatisfy { $0.count <= 64 })
        try guest.expectRecovery()
    }

    @Test func `the controller survives immediate data on an IN endpoint`() throws {
        give(4)
        input.submit(.immediate([1, 2, 3, 4], .interruptOnCompletion))
        #expect(driver.takeAll().map(\.code) == [.trbError])
        try guest.expectRecovery()
    }

    @Test func `a No Op transfer completes without the device`() throws {
        let before = device.records.count
        let address = input.submit(.noOp(.interruptOnCompletion))
        let event = try input.event()
        #expect(event.code == .success)
        #expect(event.pointer == address)
        #expect(device.records.count == before)
    }

    // MARK: - Short packets

    /// Submits a chain of three TRBs of 100 bytes, for which the device sends `given` bytes.
    private func shortChain(
        _ given: Int, _ flags: [GuestTRB.Flags]
    ) -> (addresses: [GuestAddress], events: [GuestEvent]) {
        give(given)
        let addresses = input.submit([
            .normal(buffer, 100, flags[0].union(.chain)),
            .normal(buffer + 100, 100, flags[1].union(.chain)),
            .normal(buffer + 200, 100, flags[2]),
        ])
        return (addresses, driver.takeAll())
    }

    @Test(arguments: [0, 1, 99, 100, 150, 200, 299])
    func `a short packet with ISP has an event at the TRB where it ended`(given: Int) {
        let (addresses, events) = shortChain(
            given,
            [
                .interruptOnShortPacket, .interruptOnShortPacket,
                [
                    .interruptOnShortPacket, .interruptOnCompletion,
                ],
            ])
        // If the packet ends at the end of a TRB, the event may be for that TRB or the next one.
        let index = min(given / 100, 2)
        let first = events.first
        #expect(first?.code == .shortPacket)
        if given > 0, given % 100 == 0, first?.pointer == addresses[index - 1] {
            #expect(first?.length == 0)
        } else {
            #expect(first?.pointer == addresses[index])
            #expect(first?.length == 100 - (given - index * 100))
        }
        // Linux accepts a second event of a TD only for its last TRB.
        #expect(events.count <= 2)
        if events.count == 2 { #expect(events[1].pointer == addresses[2]) }
    }

    @Test func `a short packet without ISP has its event at the TRB with IOC`() {
        let (addresses, events) = shortChain(50, [[], [], .interruptOnCompletion])
        #expect(events.count == 1)
        #expect(events.first?.pointer == addresses[2])
        #expect(events.first?.code == .shortPacket)
    }

    @Test func `the TD after a short packet starts in its own buffer`() throws {
        give(10)
        input.submit(input.trbs(buffer, 512))
        input.submit(input.trbs(buffer + 512, 512))
        let events = driver.takeAll()
        #expect(events.map(\.code) == [.shortPacket, .shortPacket])
        #expect(events.map(\.length) == [502, 502])
        #expect(guest.memory.bytes(at: buffer + 512, count: 2) == [0, 1])
    }

    @Test func `a short OUT transfer reports its residue`() throws {
        device.onTransfer = { _ in .end(.completed, transferred: 30) }
        output.submit(.normal(buffer, 100, .interruptOnCompletion))
        let event = try output.event()
        #expect(event.length == 70)
    }

    // MARK: - Event Data

    @Test(arguments: [0, 50, 100, 250, 300])
    func `Event Data reports the bytes of the whole TD`(given: Int) throws {
        give(given)
        input.submit([
            .normal(buffer, 100, .chain), .normal(buffer + 100, 100, .chain),
            .normal(buffer + 200, 100, [.chain, .evaluateNext]),
            .eventData(0x1122_3344_5566_7788, .interruptOnCompletion),
        ])
        let events = driver.takeAll()
        let event = try #require(events.first)
        #expect(events.count == 1)
        #expect(event.isEventData)
        #expect(event.parameter == 0x1122_3344_5566_7788)
        #expect(event.length == given)
        #expect(event.code == (given < 300 ? .shortPacket : .success))
    }

    @Test func `Event Data counts the bytes since the previous Event Data`() throws {
        give(300)
        input.submit([
            .normal(buffer, 100, .chain), .eventData(1, [.chain, .interruptOnCompletion]),
            .normal(buffer + 100, 200, .chain), .eventData(2, .interruptOnCompletion),
        ])
        let events = driver.takeAll()
        #expect(events.map(\.parameter) == [1, 2])
        #expect(events.map(\.length) == [100, 200])
        #expect(events.allSatisfy { $0.isEventData && $0.code == .success })
    }

    @Test func `Event Data counts more bytes than one TRB holds`() throws {
        give(0x40000)
        var trbs = (0..<4).map { GuestTRB.normal(buffer + $0 * 65536, 65536, .chain) }
        trbs.append(.eventData(7, .interruptOnCompletion))
        input.submit(trbs)
        let event = try input.event()
        #expect(event.length == 0x40000)
    }

    @Test func `Event Data without IOC causes no event`() throws {
        give(100)
        input.submit([.normal(buffer, 100, .chain), .eventData(1)])
        #expect(driver.takeAll().isEmpty)
    }

    @Test func `Event Data alone reports zero bytes`() throws {
        input.submit(.eventData(99, .interruptOnCompletion))
        let event = try input.event()
        #expect(event.isEventData)
        #expect(event.parameter == 99)
        #expect(event.length == 0)
        #expect(event.code == .success)
    }

    // MARK: - Pipelining

    @Test func `several TDs are in flight and complete in order`() throws {
        var addresses: [GuestAddress] = []
        for number in 0..<4 {
            addresses.append(
                input.submit(.normal(buffer + number * 512, 512, .interruptOnCompletion)))
        }
        guest.machine.pass(.milliseconds(1))
        #expect(device.pending.count >= 4)
        for number in 0..<4 {
            device.answerNext(.give(Array(repeating: UInt8(number), count: 512)))
        }
        #expect(driver.takeAll().map(\.pointer) == addresses)
        for number in 0..<4 {
            #expect(guest.memory.load(UInt8.self, at: buffer + number * 512) == UInt8(number))
        }
    }

    @Test func `TDs execute in order over many laps of the ring`() throws {
        give(512)
        for _ in 0..<100 {
            input.ring.push(.normal(buffer, 512, .interruptOnCompletion))
            input.ringDoorbell()
            #expect(try input.event().code == .success)
        }
    }
}
