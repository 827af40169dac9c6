// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Memory of transfers that were given up is the device's until it says so: the guest is told of
/// the end only then, since it may use the memory for something else (xHCI 4.6.4, 4.6.6, 4.6.11).
struct AbandonedTransferTests {
    let guest: Guest
    let device = TestDevice()
    let slot: GuestSlot
    let input: GuestEndpoint
    var driver: GuestDriver { guest.driver }

    init() throws {
        guest = try Guest()
        device.onTransfer = { $0.endpoint.number == 0 ? nil : .hold }
        slot = try guest.plug(device)
        input = try slot.configureOne(.bulkIn(1))
        input.submit(.normal(guest.memory.allocate(512), 512, .interruptOnCompletion))
        guest.machine.pass(.milliseconds(1))
        device.cancelsAtOnce = false
    }

    private func giveBack() {
        for id in device.cancelled {
            device.complete(Transfer.Completion(id: id, status: .cancelled, transferred: 0))
        }
    }

    private func send(_ kind: GuestTRB.Kind) {
        driver.commandRing.push(.command(kind, slot: slot.number))
        driver.ringDoorbell(slot: 0, target: 0)
    }

    @Test(arguments: [GuestTRB.Kind.disableSlot, .resetDevice])
    func `a command that drops a transfer waits for the device to let go`(
        kind: GuestTRB.Kind
    ) throws {
        send(kind)
        #expect(driver.takeAll(after: .milliseconds(10)).isEmpty)
        #expect(device.cancelled.count == 1)
        giveBack()
        let events = driver.takeAll(after: .milliseconds(1))
        #expect(events.map(\.code) == [.success])
    }

    @Test(arguments: [GuestTRB.Kind.disableSlot, .resetDevice])
    func `a device that never lets go does not hold up the driver`(kind: GuestTRB.Kind) throws {
        send(kind)
        let events = driver.takeAll(after: .milliseconds(90))
        #expect(events.map(\.code) == [.success])
        #expect(guest.answersCommands)
    }

    @Test func `a reset ends when the device has let go`() throws {
        let registers = guest.registers
        guest.machine.write32(GuestDriver.Command.reset, at: registers.command)
        guest.machine.pass(.milliseconds(10))
        #expect(guest.machine.read32(registers.command) & GuestDriver.Command.reset != 0)
        giveBack()
        guest.machine.pass(.milliseconds(1))
        #expect(guest.machine.read32(registers.command) & GuestDriver.Command.reset == 0)
    }

    @Test func `a reset ends although the device never lets go`() throws {
        let registers = guest.registers
        guest.machine.write32(GuestDriver.Command.reset, at: registers.command)
        guest.machine.pass(.milliseconds(90))
        #expect(guest.machine.read32(registers.command) & GuestDriver.Command.reset == 0)
        try driver.start()
        #expect(guest.answersCommands)
    }

    @Test func `a reset waits for what a command has waited for in vain`() throws {
        send(.disableSlot)
        #expect(driver.takeAll(after: .milliseconds(90)).map(\.code) == [.success])
        // Other commands do not wait for it again.
        let other = try driver.enableSlot(port: slot.port)
        let before = guest.machine.now
        try other.address()
        #expect(guest.machine.now - before < .milliseconds(10))
        var isQuiet = false
        guest.machine.controller.reset()
        guest.machine.controller.whenQuiet(by: guest.machine.now + .seconds(1)) { isQuiet = true }
        guest.machine.pass(.milliseconds(90))
        #expect(!isQuiet)
        giveBack()
        guest.machine.pass(.milliseconds(1))
        #expect(isQuiet)
    }

    @Test func `commands that wait in vain for an unplugged device do not lose its last transfer`()
        throws
    {
        let port = try #require(device.port)
        let id = try #require(device.pending.first?.id)
        device.transferInUse = id
        guest.machine.detach(device)
        #expect(try slot.control.stop().code == .success)
        #expect(ends() == [])
        driver.commandRing.push(
            .command(.evaluateContext, slot: slot.number, parameter: slot.inputContext.rawValue))
        driver.ringDoorbell(slot: 0, target: 0)
        #expect(driver.takeAll(after: .milliseconds(90)).contains { $0.isCommandCompletion })
        port.complete(Transfer.Completion(id: id, status: .cancelled, transferred: 0))
        #expect(ends() == [.usbTransactionError])
    }

    @Test func `a transfer of an unplugged device ends when its memory is no longer used`() throws {
        input.submit(.normal(guest.memory.allocate(512), 512, .interruptOnCompletion))
        guest.machine.pass(.milliseconds(1))
        let port = try #require(device.port)
        try #require(device.pending.count == 2)
        let (id, next) = (device.pending[0].id, device.pending[1].id)
        device.transferInUse = id
        guest.machine.detach(device)
        #expect(ends() == [])
        // What else it says is not heard.
        port.disconnect()
        port.complete(Transfer.Completion(id: next, status: .completed, transferred: 0))
        #expect(ends() == [])
        port.complete(Transfer.Completion(id: id, status: .cancelled, transferred: 0))
        #expect(ends() == [.usbTransactionError])
        #expect(guest.answersCommands)
    }

    private func ends() -> [GuestEvent.Code] {
        driver.takeAll(after: .milliseconds(5)).filter { $0.trb.kind == .transferEvent }.map(\.code)
    }

    @Test func `what ended together with another is not waited for`() throws {
        for _ in 0..<3 {
            input.submit(.normal(guest.memory.allocate(512), 512, .interruptOnCompletion))
        }
        guest.machine.pass(.milliseconds(1))
        device.cancelsAtOnce = true
        device.cancelsAllAtOnce = true
        device.answerNext(.end(.stalled, transferred: 0))
        #expect(ends() == [.stall])
        // No command is held up by memory that nobody uses.
        driver.commandRing.push(
            .command(.resetEndpoint, slot: slot.number, endpoint: input.contextIndex))
        driver.ringDoorbell(slot: 0, target: 0)
        #expect(driver.takeAll(after: .milliseconds(1)).map(\.code) == [.success])
    }
}
