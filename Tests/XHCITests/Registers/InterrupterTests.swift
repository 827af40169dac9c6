// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Interrupters: IE, IP, EHB, moderation, and one vector each (xHCI 4.17, 5.5.2).
struct InterrupterTests {
    let guest: Guest
    var driver: GuestDriver { guest.driver }
    var machine: SimulatedMachine { guest.machine }

    init() throws {
        var options = GuestDriver.Options()
        options.eventRings = [[64], [64], [64]]
        guest = try Guest(options: options)
    }

    private var total: Int { machine.interrupts.total }

    /// Causes an event on the primary interrupter in one turn, without waiting for moderation.
    private func raiseEvent() {
        driver.commandRing.push(.command(.noOpCommand))
        driver.ringDoorbell(slot: 0, target: 0)
        machine.turn()
    }

    private func management(_ number: Int = 0) -> UInt32 {
        machine.read32(guest.registers.interrupter(number))
    }

    @Test func `an event is an interrupt of vector zero`() {
        raiseEvent()
        #expect(machine.interrupts.vectors == [0])
        #expect(guest.status & GuestDriver.Status.eventInterrupt != 0)
    }

    @Test func `a batch of events is one interrupt`() {
        for _ in 0..<10 { driver.commandRing.push(.command(.noOpCommand)) }
        driver.ringDoorbell(slot: 0, target: 0)
        machine.pass(.milliseconds(1))
        #expect(total == 1)
    }

    @Test func `while EHB is set there is no further interrupt`() {
        driver.updatesDequeuePointer = false
        raiseEvent()
        raiseEvent()
        machine.pass(.milliseconds(10))
        #expect(total == 1)
        #expect(machine.read64(guest.registers.interrupter(0) + 24) & 8 == 8)
    }

    @Test func `events left on the ring interrupt again when EHB is cleared`() {
        driver.updatesDequeuePointer = false
        raiseEvent()
        #expect(total == 1)
        driver.collect()
        raiseEvent()
        // The handler acknowledges up to the first event only.
        let ring = driver.eventRings[0].segments[0].address
        machine.write64((ring + 16).rawValue | 8, at: guest.registers.interrupter(0) + 24)
        machine.pass(.milliseconds(10))
        #expect(total == 2)
    }

    @Test func `an empty ring does not interrupt when EHB is cleared`() {
        raiseEvent()
        driver.collect()
        machine.pass(.milliseconds(10))
        #expect(total == 1)
        #expect(machine.read64(guest.registers.interrupter(0) + 24) & 8 == 0)
    }

    @Test func `a disabled interrupter sets IP and interrupts when it is enabled`() {
        machine.write32(0, at: guest.registers.interrupter(0))
        raiseEvent()
        machine.pass(.milliseconds(10))
        #expect(total == 0)
        machine.write32(2, at: guest.registers.interrupter(0))
        machine.pass(.milliseconds(10))
        #expect(total == 1)
    }

    @Test func `with INTE clear, the interrupt is raised when INTE is set`() {
        let command = machine.read32(guest.registers.command)
        machine.write32(
            command & ~GuestDriver.Command.interruptEnable, at: guest.registers.command)
        raiseEvent()
        machine.pass(.milliseconds(10))
        #expect(total == 0)
        machine.write32(command, at: guest.registers.command)
        machine.pass(.milliseconds(10))
        #expect(total == 1)
    }

    @Test func `the MSI-X message clears IP`() {
        raiseEvent()
        #expect(management() & 1 == 0)
        #expect(management() & 2 == 2)
    }

    @Test func `interrupts are at least the moderation interval apart`() {
        machine.write32(4000, at: guest.registers.interrupter(0) + 4)
        var times: [Duration] = []
        machine.interrupts.onSignal = { [machine] _ in times.append(machine.now) }
        let begin = machine.now
        for _ in 0..<50 {
            driver.commandRing.push(.command(.noOpCommand))
            driver.ringDoorbell(slot: 0, target: 0)
            _ = machine.advance(limit: .microseconds(100)) {
                driver.collect()
                return false
            }
        }
        driver.takeAll(after: .milliseconds(2))
        #expect(times.first.map { $0 - begin < .milliseconds(1) } == true)
        for (before, after) in zip(times, times.dropFirst()) {
            #expect(after - before >= .milliseconds(1))
            #expect(after - before < .microseconds(1300))
        }
        #expect((4...7).contains(times.count))
    }

    @Test func `a moderation interval of zero does not delay`() {
        for number in 1...5 {
            raiseEvent()
            driver.collect()
            machine.turn()
            #expect(total == number)
        }
    }

    @Test func `a moderated interrupt is raised when its time comes, without a register access`() {
        machine.write32(4000, at: guest.registers.interrupter(0) + 4)
        raiseEvent()
        driver.collect()
        raiseEvent()
        #expect(total == 1)
        machine.pass(.milliseconds(5))
        #expect(total == 2)
    }

    @Test func `transfer events go to the interrupter of their TRB`() throws {
        let device = TestDevice { $0.endpoint == .control ? nil : .give([1]) }
        let endpoint = try guest.plug(device, .bulkIn(1))
        driver.takeAll()
        let buffer = guest.memory.allocate(16)
        for number in [1, 2, 0, 2] {
            let before = machine.interrupts.count(vector: number)
            endpoint.submit(
                .normal(buffer, 16, .interruptOnCompletion).interrupter(number))
            #expect(try endpoint.event().interrupter == number)
            machine.pass(.milliseconds(2))
            #expect(machine.interrupts.count(vector: number) == before + 1)
        }
    }

    @Test(arguments: [3, 7, 8, 255, 1023])
    func `the controller survives events for an interrupter that has no ring or does not exist`(
        number: Int
    ) throws {
        let device = TestDevice { $0.endpoint == .control ? nil : .give([1]) }
        let endpoint = try guest.plug(device, .bulkIn(1))
        let buffer = guest.memory.allocate(16)
        endpoint.submit(.normal(buffer, 16, .interruptOnCompletion).interrupter(number))
        driver.takeAll()
        #expect(try endpoint.receive(4) == [1])
    }

    @Test func `a full secondary event ring does not block the primary one`() throws {
        var options = GuestDriver.Options()
        options.eventRings = [[64], [16]]
        let guest = try Guest(options: options)
        let device = TestDevice { $0.endpoint == .control ? nil : .give([1]) }
        let slot = try guest.plug(device)
        let endpoint = try slot.configureOne(.bulkIn(1, segments: [64]))
        let buffer = guest.memory.allocate(16)
        guest.driver.updatesDequeuePointer = false
        for _ in 0..<40 {
            endpoint.submit(.normal(buffer, 16, .interruptOnCompletion).interrupter(1))
        }
        guest.machine.pass(.milliseconds(5))
        let event = try guest.driver.command(.command(.noOpCommand))
        #expect(event.code == .success)
    }
}
