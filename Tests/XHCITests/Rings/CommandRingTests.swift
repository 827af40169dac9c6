// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// The command ring: order, links, stop and abort (xHCI 4.6.1, 4.9.3, 5.4.5).
struct CommandRingTests {
    let guest: Guest
    var driver: GuestDriver { guest.driver }
    var machine: SimulatedMachine { guest.machine }

    init() throws { guest = try Guest() }

    private var isRunning: Bool { machine.read32(guest.registers.commandRing) & 8 != 0 }

    @Test func `No Op completes, and its event points to its TRB`() throws {
        let address = driver.commandRing.enqueuePointer
        let event = try driver.command(.command(.noOpCommand))
        #expect(event.code == .success)
        #expect(event.pointer == address)
        #expect(event.slot == 0)
    }

    @Test func `commands complete in order across the Link TRB`() throws {
        for _ in 0..<10 {
            let addresses = driver.commandRing.push(
                Array(repeating: .command(.noOpCommand), count: 20))
            driver.ringDoorbell(slot: 0, target: 0)
            let events = driver.takeAll(after: .milliseconds(1))
            #expect(events.map(\.pointer) == addresses)
            #expect(events.allSatisfy { $0.code == .success })
        }
    }

    @Test func `commands wait for the doorbell`() throws {
        driver.commandRing.push(.command(.noOpCommand))
        #expect(driver.takeAll().isEmpty)
        driver.ringDoorbell(slot: 0, target: 0)
        #expect(driver.takeAll().count == 1)
    }

    @Test func `a doorbell of a halted controller requests no service`() throws {
        try driver.halt()
        driver.commandRing.push(.command(.noOpCommand))
        driver.ringDoorbell(slot: 0, target: 0)
        #expect(driver.takeAll().isEmpty)
        try driver.run()
        #expect(guest.answersCommands)
    }

    @Test func `a command ring of 64 segments works`() throws {
        var options = GuestDriver.Options()
        options.commandRing = Array(repeating: 3, count: 64)
        let guest = try Guest(options: options)
        for _ in 0..<300 { #expect(guest.answersCommands) }
    }

    @Test func `Link TRBs with IOC or CH are followed`() throws {
        for flags: GuestTRB.Flags in [.interruptOnCompletion, .chain] {
            driver.commandRing.linkFlags = flags
            for _ in 0..<70 { #expect(guest.answersCommands) }
        }
    }

    @Test func `CRR is set while the command ring runs`() throws {
        #expect(!isRunning)
        #expect(guest.answersCommands)
        #expect(isRunning)
        try driver.halt()
        #expect(!isRunning)
    }

    @Test(arguments: [2, 4] as [UInt64])
    func `CS and CA stop the ring with an event at the next command`(bit: UInt64) throws {
        #expect(guest.answersCommands)
        machine.write64(bit, at: guest.registers.commandRing)
        let event = try driver.wait("the end of the command ring") { $0.isCommandCompletion }
        #expect(event.code == .commandRingStopped)
        #expect(event.pointer == driver.commandRing.enqueuePointer)
        #expect(!isRunning)
    }

    @Test(arguments: [2, 4] as [UInt64])
    func `CS and CA of a stopped ring have no event`(bit: UInt64) throws {
        machine.write64(bit, at: guest.registers.commandRing)
        #expect(driver.takeAll().isEmpty)
        #expect(!isRunning)
    }

    @Test func `a stopped ring continues at the doorbell`() throws {
        #expect(guest.answersCommands)
        machine.write64(2, at: guest.registers.commandRing)
        _ = driver.takeAll()
        #expect(guest.answersCommands)
        #expect(isRunning)
    }

    @Test func `a stopped ring accepts a new pointer`() throws {
        #expect(guest.answersCommands)
        machine.write64(2, at: guest.registers.commandRing)
        _ = driver.takeAll()
        let other = GuestRing(guest.memory, segmentSizes: [4])
        machine.write64(other.start.rawValue | 1, at: guest.registers.commandRing)
        let address = other.push(.command(.noOpCommand))
        driver.ringDoorbell(slot: 0, target: 0)
        let event = try driver.wait("completion") { $0.isCommandCompletion }
        #expect(event.pointer == address)
        #expect(event.code == .success)
    }

    /// A driver writes both halves of CRCR to abort a command, and the ring may stop in between.
    @Test(arguments: [2, 4] as [UInt32])
    func `a ring that stops between the writes of the register's halves keeps its position`(
        bit: UInt32
    ) throws {
        for _ in 0..<3 { #expect(guest.answersCommands) }
        let next = driver.commandRing.enqueuePointer.rawValue
        let register = guest.registers.commandRing
        machine.write32(UInt32(truncatingIfNeeded: next) | bit, at: register)
        machine.turn()
        #expect(!isRunning)
        machine.write32(UInt32(truncatingIfNeeded: next >> 32), at: register + 4)
        _ = driver.takeAll()
        #expect(machine.read64(register) == 0)
        #expect(guest.answersCommands)
    }

    /// After 40 commands the ring is in its second lap: its cycle state is no longer the initial
    /// one.
    @Test func `a ring of a halted controller keeps its position, after a half write too`() throws {
        for _ in 0..<40 { #expect(guest.answersCommands) }
        let next = driver.commandRing.enqueuePointer.rawValue
        for offset in [nil, 4] {
            try driver.halt()
            if let offset {
                machine.write32(
                    UInt32(truncatingIfNeeded: next >> 32),
                    at: guest.registers.commandRing + offset)
            }
            try driver.run()
            #expect(guest.answersCommands)
        }
    }

    @Test func `a running ring ignores a new pointer`() throws {
        #expect(guest.answersCommands)
        machine.write64(guest.memory.base.rawValue, at: guest.registers.commandRing)
        #expect(guest.answersCommands)
    }

    @Test func `the ring starts with RCS as its cycle state`() throws {
        let ring = GuestRing(guest.memory, segmentSizes: [4])
        try driver.halt()
        machine.write64(ring.start.rawValue, at: guest.registers.commandRing)
        try driver.run()
        // With cycle state 0, the consumer executes the first TRB and stops at the second, whose
        // cycle bit is 1.
        let noOp = GuestTRB.command(.noOpCommand)
        guest.memory.store(noOp.control, at: ring.start + 12)
        guest.memory.store(noOp.control | 1, at: ring.start + 16 + 12)
        driver.ringDoorbell(slot: 0, target: 0)
        #expect(driver.takeAll().map(\.pointer) == [ring.start])
    }

    @Test func `every command type has a Command Completion Event`() throws {
        for kind in UInt8(0)...63 where kind != GuestTRB.Kind.link.rawValue {
            for slot in [0, 1, 255] {
                let event = try driver.command(
                    .command(GuestTRB.Kind(rawValue: kind), slot: slot))
                switch GuestTRB.Kind(rawValue: kind) {
                case .enableSlot, .noOpCommand: #expect(event.code == .success)
                case .forceEvent, .negotiateBandwidth, .setLatencyTolerance, .getPortBandwidth,
                    .forceHeader:
                    break
                case .disableSlot: break
                case .addressDevice, .configureEndpoint, .evaluateContext, .resetEndpoint,
                    .stopEndpoint, .setDequeuePointer, .resetDevice:
                    #expect(event.code != .success)
                default:
                    #expect(event.code == .trbError, "type \(kind)")
                }
            }
        }
        #expect(!machine.isSpinning)
    }

    @Test func `every command handles reserved bits and fields of all ones`() throws {
        for kind in UInt8(0)...63 where kind != GuestTRB.Kind.link.rawValue {
            let trb = GuestTRB(
                parameter: .max, status: .max,
                control: .max & ~0xfc00 | UInt32(kind) << 10)
            let event = try driver.command(trb)
            #expect(event.isCommandCompletion)
        }
        try guest.expectRecovery()
    }

    /// Dev Speed has the bits that are the Endpoint ID in other commands.
    @Test(arguments: [1, 2, 3, 4, 5])
    func `Get Port Bandwidth stores one byte for each port`(speed: Int) throws {
        let context = guest.memory.allocate(guest.registers.ports + 1, alignment: 16)
        guest.memory.fill(0xff, at: context + 1, count: guest.registers.ports)
        let event = try driver.command(
            .command(.getPortBandwidth, endpoint: speed, parameter: context.rawValue))
        #expect(event.code == .success)
        let percents = guest.memory.bytes(at: context + 1, count: guest.registers.ports)
        #expect(percents[..<8].allSatisfy { speed < 4 ? (1...100).contains($0) : $0 == 0 })
        #expect(percents[8...].allSatisfy { speed < 4 ? $0 == 0 : (1...100).contains($0) })
        #expect(guest.memory.damagedCanaries().isEmpty)
    }

    @Test func `Get Port Bandwidth with an invalid speed or address is an error`() throws {
        for speed in [0, 6, 15] {
            let event = try driver.command(
                .command(
                    .getPortBandwidth, endpoint: speed, parameter: guest.memory.base.rawValue))
            #expect(event.code != .success)
        }
        driver.commandRing.push(
            .command(.getPortBandwidth, endpoint: 3, parameter: guest.nowhere.rawValue))
        driver.ringDoorbell(slot: 0, target: 0)
        let events = driver.takeAll()
        #expect(guest.hasFailed || events.contains { $0.code != .success })
        try guest.expectRecovery()
    }

    @Test func `a Link TRB to itself is bounded work`() throws {
        let ring = GuestRing(guest.memory, segmentSizes: [4])
        for flags: GuestTRB.Flags in [[], .toggleCycle] {
            try driver.start()
            try driver.halt()
            let link = GuestTRB.link(to: ring.start, flags)
            guest.memory.store(link.parameter, at: ring.start)
            guest.memory.store(link.control | 1, at: ring.start + 12)
            machine.write64(ring.start.rawValue | 1, at: guest.registers.commandRing)
            try driver.run()
            driver.ringDoorbell(slot: 0, target: 0)
            machine.pass(.milliseconds(100))
            #expect(!machine.isSpinning)
        }
        try guest.expectRecovery()
    }

    @Test func `a command ring outside guest memory is a Host System Error`() throws {
        try driver.halt()
        machine.write64(guest.nowhere.rawValue | 1, at: guest.registers.commandRing)
        try driver.run()
        driver.ringDoorbell(slot: 0, target: 0)
        machine.pass(.milliseconds(100))
        #expect(guest.hasFailed)
        try guest.expectRecovery()
    }

    @Test func `a Link TRB to outside guest memory is a Host System Error`() throws {
        let address = driver.commandRing.enqueuePointer
        let link = GuestTRB.link(to: guest.nowhere)
        guest.memory.store(link.parameter, at: address)
        guest.memory.store(link.control | 1, at: address + 12)
        driver.ringDoorbell(slot: 0, target: 0)
        machine.pass(.milliseconds(100))
        let events = driver.takeAll()
        #expect(guest.hasFailed || events.contains { $0.code == .trbError })
        try guest.expectRecovery()
    }

    @Test(arguments: 1...255)
    func `doorbell 0 ignores other targets`(target: Int) throws {
        driver.commandRing.push(.command(.noOpCommand))
        driver.ringDoorbell(slot: 0, target: target, stream: target)
        machine.pass(.milliseconds(1))
        #expect(guest.answersCommands)
    }
}
