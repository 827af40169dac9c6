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

    @Test func `a No Op completes and names its TRB`() throws {
        let address = driver.commandRing.enqueuePointer
        let event = try driver.command(.command(.noOpCommand))
        #expect(event.code == .success)
        #expect(event.pointer == address)
        #expect(event.slot == 0)
    }

    @Test func `many commands complete in order through the link`() throws {
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

    @Test func `a doorbell of a halted controller is not remembered as work`() throws {
        try driver.halt()
        driver.commandRing.push(.command(.noOpCommand))
        driver.ringDoorbell(slot: 0, target: 0)
        #expect(driver.takeAll().isEmpty)
        try driver.run()
        #expect(guest.answersCommands)
    }

    @Test func `a ring of sixty-four segments is followed`() throws {
        var options = GuestDriver.Options()
        options.commandRing = Array(repeating: 3, count: 64)
        let guest = try Guest(options: options)
        for _ in 0..<300 { #expect(guest.answersCommands) }
    }

    @Test func `links with an interrupt or a chain are followed`() throws {
        for flags: GuestTRB.Flags in [.interruptOnCompletion, .chain] {
            driver.commandRing.linkFlags = flags
            for _ in 0..<70 { #expect(guest.answersCommands) }
        }
    }

    @Test func `Command Ring Running shows while commands may run`() throws {
        #expect(!isRunning)
        #expect(guest.answersCommands)
        #expect(isRunning)
        try driver.halt()
        #expect(!isRunning)
    }

    @Test(arguments: [2, 4] as [UInt64])
    func `stop and abort end the ring with an event at the next command`(bit: UInt64) throws {
        #expect(guest.answersCommands)
        machine.write64(bit, at: guest.registers.commandRing)
        let event = try driver.wait("the end of the command ring") { $0.isCommandCompletion }
        #expect(event.code == .commandRingStopped)
        #expect(event.pointer == driver.commandRing.enqueuePointer)
        #expect(!isRunning)
    }

    @Test(arguments: [2, 4] as [UInt64])
    func `stop and abort of a ring that does not run say nothing`(bit: UInt64) throws {
        machine.write64(bit, at: guest.registers.commandRing)
        #expect(driver.takeAll().isEmpty)
        #expect(!isRunning)
    }

    @Test func `a stopped ring goes on at the doorbell`() throws {
        #expect(guest.answersCommands)
        machine.write64(2, at: guest.registers.commandRing)
        _ = driver.takeAll()
        #expect(guest.answersCommands)
        #expect(isRunning)
    }

    @Test func `a stopped ring takes a new pointer`() throws {
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

    /// A driver that aborts a command writes both halves, and the ring may stop in between.
    @Test(arguments: [2, 4] as [UInt32])
    func `a ring that is stopped between two halves of the register goes on where it stands`(
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

    /// The ring is then in its second lap, so that its cycle state is not the one it began with.
    @Test func `a ring of a halted controller goes on where it stands, half written or not`() throws
    {
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

    @Test func `a running ring keeps its pointer`() throws {
        #expect(guest.answersCommands)
        machine.write64(guest.memory.base.rawValue, at: guest.registers.commandRing)
        #expect(guest.answersCommands)
    }

    @Test func `the ring begins with the cycle state that the register gives`() throws {
        let ring = GuestRing(guest.memory, segmentSizes: [4])
        try driver.halt()
        machine.write64(ring.start.rawValue, at: guest.registers.commandRing)
        try driver.run()
        // The first lap has the cycle bit 1, so a consumer that expects 0 finds nothing after the
        // TRB that has 0 already.
        let noOp = GuestTRB.command(.noOpCommand)
        guest.memory.store(noOp.control, at: ring.start + 12)
        guest.memory.store(noOp.control | 1, at: ring.start + 16 + 12)
        driver.ringDoorbell(slot: 0, target: 0)
        #expect(driver.takeAll().map(\.pointer) == [ring.start])
    }

    @Test func `every command type has an answer`() throws {
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

    @Test func `reserved bits and fields of all ones are survived by every command`() throws {
        for kind in UInt8(0)...63 where kind != GuestTRB.Kind.link.rawValue {
            let trb = GuestTRB(
                parameter: .max, status: .max,
                control: .max & ~0xfc00 | UInt32(kind) << 10)
            let event = try driver.command(trb)
            #expect(event.isCommandCompletion)
        }
        try guest.expectRecovery()
    }

    /// Dev Speed stands where other commands have the endpoint.
    @Test(arguments: [1, 2, 3, 4, 5])
    func `the bandwidth of the ports of a speed is told, byte by byte`(speed: Int) throws {
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

    @Test func `the bandwidth of no speed or into no memory is an error`() throws {
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

    @Test func `a link to itself is not followed for ever`() throws {
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

    @Test func `a ring outside memory is an error of the system or of the command`() throws {
        try driver.halt()
        machine.write64(guest.nowhere.rawValue | 1, at: guest.registers.commandRing)
        try driver.run()
        driver.ringDoorbell(slot: 0, target: 0)
        machine.pass(.milliseconds(100))
        #expect(guest.hasFailed)
        try guest.expectRecovery()
    }

    @Test func `a link out of memory is an error of the system or of the command`() throws {
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
    func `doorbell zero with another target does no harm`(target: Int) throws {
        driver.commandRing.push(.command(.noOpCommand))
        driver.ringDoorbell(slot: 0, target: target, stream: target)
        machine.pass(.milliseconds(1))
        #expect(guest.answersCommands)
    }
}
