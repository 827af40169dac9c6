// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// A controller that has set HCHalted no longer accesses guest memory: firmware and kernels that
/// hand over to another driver wait only for that bit (xHCI 5.4.1.1, 5.4.2).
struct HaltTests {
    let guest: Guest
    let device = TestDevice(.superSpeed)
    let slot: GuestSlot
    let buffer: GuestAddress
    var driver: GuestDriver { guest.driver }

    init() throws {
        guest = try Guest()
        device.onTransfer = { $0.endpoint == .control ? nil : .hold }
        slot = try guest.plug(device)
        buffer = guest.memory.allocate(0x4000, boundary: 0x4000)
        guest.memory.write((0..<1536).map { UInt8(truncatingIfNeeded: $0 / 7) }, at: buffer)
    }

    private var isHalted: Bool { guest.status & GuestDriver.Status.halted != 0 }

    private var chain: [GuestTRB] {
        [
            .normal(buffer, 512, .chain), .normal(buffer + 512, 512, .chain),
            .normal(buffer + 1024, 512, .interruptOnCompletion),
        ]
    }

    /// Clears R/S once the device has the TDs submitted so far.
    private func clearRun() {
        guest.machine.turn()
        let registers = guest.registers
        guest.machine.write32(
            guest.machine.read32(registers.command) & ~GuestDriver.Command.run,
            at: registers.command)
        guest.machine.pass(.milliseconds(1))
    }

    private func completeCancelled() {
        for id in device.cancelled {
            device.complete(Transfer.Completion(id: id, status: .cancelled, transferred: 0))
        }
        guest.machine.pass(.milliseconds(1))
    }

    private func events() -> [GuestEvent] {
        driver.takeAll(after: .milliseconds(50)).filter(\.isTransfer)
    }

    // MARK: - When HCHalted is shown

    @Test func `HCHalted is set when devices have completed the cancelled transfers`() throws {
        device.cancelsAtOnce = false
        try slot.configureOne(.bulkIn(1)).submit(chain)
        clearRun()
        #expect(!isHalted)
        #expect(device.cancelled.count == 1)
        completeCancelled()
        #expect(isHalted)
    }

    @Test
    func `HCHalted is set after a timeout if a device does not complete the cancelled transfers`()
        throws
    {
        device.cancelsAtOnce = false
        try slot.configureOne(.bulkIn(1)).submit(chain)
        clearRun()
        guest.machine.pass(.milliseconds(30))
        #expect(isHalted)
        try driver.run()
        #expect(guest.answersCommands)
    }

    @Test func `a halt after a Host System Error waits for devices, too`() throws {
        device.cancelsAtOnce = false
        try slot.configureOne(.bulkIn(1)).submit(chain)
        guest.machine.pass(.milliseconds(1))
        let address = driver.commandRing.enqueuePointer
        let link = GuestTRB.link(to: guest.nowhere)
        guest.memory.store(link.parameter, at: address)
        guest.memory.store(link.control | 1, at: address + 12)
        driver.ringDoorbell(slot: 0, target: 0)
        guest.machine.pass(.milliseconds(1))
        #expect(guest.hasFailed)
        #expect(!isHalted)
        completeCancelled()
        #expect(isHalted)
        try guest.expectRecovery()
    }

    @Test func `R/S that is set during a halt takes effect after it`() throws {
        device.cancelsAtOnce = false
        let endpoint = try slot.configureOne(.bulkIn(1))
        endpoint.submit(chain)
        clearRun()
        guest.machine.write32(GuestDriver.Command.run, at: guest.registers.command)
        guest.machine.pass(.milliseconds(1))
        #expect(device.records.filter { $0.endpoint.number == 1 }.count == 1)
        completeCancelled()
        #expect(!isHalted)
        #expect(device.records.filter { $0.endpoint.number == 1 }.count == 2)
    }

    // MARK: - Running again

    @Test(arguments: [0, 1, 512, 700, 1535, 1536])
    func `a TD that a halt interrupts resumes without a doorbell and moves every byte once`(
        moved: Int
    ) throws {
        let output = try slot.configureOne(.bulkOut(1))
        device.transferredWhenCancelled = moved
        let addresses = output.submit(chain)
        clearRun()
        #expect(isHalted)
        #expect(output.context.state == .running)
        device.onTransfer = { $0.endpoint == .control ? nil : .accept }
        try driver.run()
        let events = events()
        #expect(events.map(\.code) == [.success])
        #expect(events.map(\.pointer) == [addresses[2]])
        let parts = device.records.filter { $0.endpoint == EndpointAddress(1, .out) }.map(\.bytes)
        let first = try #require(parts.first)
        #expect(
            Array(first[..<moved]) + parts.dropFirst().joined()
                == guest.memory.bytes(at: buffer, count: 1536))
    }

    @Test func `a TD that completes during a halt gets its event when the controller runs again`()
        throws
    {
        device.cancelsAtOnce = false
        let input = try slot.configureOne(.bulkIn(1))
        var addresses: [GuestAddress] = []
        for index in 0..<3 {
            addresses.append(input.submit(.normal(buffer + index * 64, 64, .interruptOnCompletion)))
        }
        clearRun()
        #expect(device.cancelled.count == 3)
        device.answerNext(.give(Array(repeating: 1, count: 64)))
        completeCancelled()
        #expect(isHalted)
        #expect(events().isEmpty)
        device.onTransfer = { _ in .give(Array(repeating: 2, count: 64)) }
        try driver.run()
        let events = events()
        #expect(events.map(\.code) == [.success, .success, .success])
        #expect(events.map(\.pointer) == addresses)
        #expect(
            guest.memory.bytes(at: buffer, count: 192)
                == Array(repeating: 1, count: 64) + Array(repeating: 2, count: 128))
    }

    @Test func `streams continue without a doorbell`() throws {
        let streams = try GuestStreams(slot, EndpointAddress(2, .in), maxPrimaryStreams: 2)
        let pointers = [1, 3].flatMap {
            streams.submit($0, [.normal(buffer, 64, .interruptOnCompletion)])
        }
        clearRun()
        #expect(isHalted && device.pending.isEmpty)
        device.onTransfer = { _ in .give(Array(repeating: 2, count: 64)) }
        try driver.run()
        #expect(Set(events().map(\.pointer)) == Set(pointers))
    }

    @Test func `isochronous endpoints continue without a doorbell`() throws {
        device.onTransfer = { $0.endpoint == .control ? nil : .accept }
        let output = try slot.configureOne(.isochronous(1, .out, interval: 3))
        output.submit((0..<10).map { _ in .isochronous(buffer, 8, .interruptOnCompletion) })
        guest.machine.pass(.milliseconds(4))
        clearRun()
        #expect(isHalted)
        guest.machine.pass(.milliseconds(20))
        try driver.run()
        #expect(events().filter { $0.code == .success }.count == 10)
    }
}
