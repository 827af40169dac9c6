// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Reserved bits that a driver sets nevertheless, and optional features.
struct ReservedValueTests {
    let guest: Guest
    let device = TestDevice { $0.endpoint == .control ? nil : .give([1, 2, 3]) }
    var driver: GuestDriver { guest.driver }

    init() throws { guest = try Guest() }

    @Test func `reserved bits of transfer TRBs are ignored`() throws {
        let slot = try guest.plug(device)
        let endpoint = try slot.configureOne(.bulkIn(1))
        let buffer = guest.memory.allocate(64)
        // Bits 7, 8 and 31:16 of a Normal TRB's control word.
        endpoint.submit(
            GuestTRB(
                .normal, parameter: buffer.rawValue, status: 64,
                flags: [.interruptOnCompletion, .interruptOnShortPacket],
                control: 0xffff_0180))
        let event = try endpoint.event()
        #expect(event.code == .shortPacket)
        #expect(event.length == 61)
        endpoint.submit(
            GuestTRB(
                .noOp, parameter: .max, status: 0x003f_ffff, flags: .interruptOnCompletion,
                control: 0xffff_0180))
        #expect(try endpoint.event().code == .success)
    }

    @Test func `reserved bits of Link TRBs are ignored`() throws {
        let endpoint = try guest.plug(device, .bulkIn(1, segments: [2, 2]))
        endpoint.ring.linkFlags = GuestTRB.Flags(rawValue: 0xffff_0388)
        for _ in 0..<10 { #expect(try endpoint.receive(16) == [1, 2, 3]) }
    }

    @Test func `reserved bits of contexts are ignored`() throws {
        let slot = try guest.plug(device)
        _ = slot.prepareConfiguration([.bulkIn(1)])
        let input = slot.inputContext
        // Reserved words of the input control, slot and endpoint contexts.
        for word in 2..<7 { guest.memory.store(UInt32.max, at: input + word * 4) }
        for word in 4..<8 { guest.memory.store(UInt32.max, at: input + 32 + word * 4) }
        for word in 5..<8 { guest.memory.store(UInt32.max, at: input + 4 * 32 + word * 4) }
        #expect(try slot.configureCommand().code == .success)
    }

    @Test func `the reserved low bits of an Input Context Pointer are ignored`() throws {
        let slot = try guest.plug(device)
        _ = slot.prepareConfiguration([.bulkIn(1)])
        let event = try driver.command(
            .command(
                .configureEndpoint, slot: slot.number,
                parameter: slot.inputContext.rawValue | 0xf))
        #expect(event.code == .success)
    }

    @Test(arguments: UInt64(0)...8)
    func `any EP Type and EP State in an input context is handled`(state: UInt64) throws {
        let slot = try guest.plug(device)
        for type in UInt32(0)...7 {
            _ = slot.prepareConfiguration([.bulkIn(1)], drop: 1 << 3)
            let ring = GuestRing(guest.memory)
            slot.writeInput(
                3,
                [
                    UInt32(state & 7) | 0xff << 16, type << 3 | 0xff00 | 1024 << 16,
                    UInt32(truncatingIfNeeded: ring.start.rawValue) | 1,
                    UInt32(truncatingIfNeeded: ring.start.rawValue >> 32), .max,
                ])
            let code = try slot.configureCommand().code
            if code == .success {
                #expect(slot.endpointContext(3).state == .running, "type \(type)")
            }
            driver.ringDoorbell(slot: slot.number, target: 3)
        }
        driver.takeAll()
        #expect(guest.answersCommands)
    }

    @Test func `the controller survives more streams than it offers`() throws {
        let slot = try guest.plug(device)
        _ = slot.prepareConfiguration([.bulkIn(1)])
        var words = GuestEndpointContext(
            type: .bulkIn, maxPacketSize: 512, dequeue: guest.memory.allocate(256)
        ).words
        words[0] |= 3 << 10 | 1 << 15
        slot.writeInput(3, words)
        _ = try slot.configureCommand()
        for stream in [0, 1, 8, 0xffff] {
            driver.ringDoorbell(slot: slot.number, target: 3, stream: stream)
        }
        driver.takeAll()
        try guest.expectRecovery()
    }

    @Test func `Save State and Restore State complete`() throws {
        let machine = guest.machine
        try driver.halt()
        machine.write32(1 << 8, at: guest.registers.command)
        machine.pass(.milliseconds(20))
        #expect(guest.status & 1 << 8 == 0, "save state status")
        machine.write32(1 << 9, at: guest.registers.command)
        machine.pass(.milliseconds(20))
        #expect(guest.status & 1 << 9 == 0, "restore state status")
        #expect(machine.read32(guest.registers.command) & 3 << 8 == 0)
        try guest.expectRecovery()
    }
}
