// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Enable Slot, Disable Slot, Address Device, Reset Device (xHCI 4.5.3, 4.6.3 to 4.6.5, 4.6.11).
struct SlotCommandTests {
    let guest: Guest
    let device = TestDevice()
    var driver: GuestDriver { guest.driver }

    init() throws { guest = try Guest() }

    private func enabledPort() throws -> Int {
        try guest.machine.attach(device)
        let port = try driver.waitForConnection()
        try driver.resetPort(port)
        return port
    }

    // MARK: - Enable and disable

    @Test func `each slot can be enabled once, and no further one`() throws {
        var slots: [Int] = []
        for _ in 0..<guest.registers.slots {
            slots.append(try driver.succeed(.command(.enableSlot)).slot)
        }
        #expect(slots.sorted() == Array(1...guest.registers.slots))
        #expect(try driver.command(.command(.enableSlot)).code == .noSlotsAvailable)
        try driver.succeed(.command(.disableSlot, slot: 7))
        #expect(try driver.succeed(.command(.enableSlot)).slot == 7)
    }

    @Test func `Enable Slot enables at most MaxSlotsEn slots`() throws {
        try driver.halt()
        guest.machine.write32(2, at: guest.registers.configure)
        try driver.run()
        #expect(try driver.command(.command(.enableSlot)).code == .success)
        #expect(try driver.command(.command(.enableSlot)).code == .success)
        #expect(try driver.command(.command(.enableSlot)).code == .noSlotsAvailable)
    }

    @Test func `commands for a disabled slot fail`() throws {
        let kinds: [GuestTRB.Kind] = [
            .disableSlot, .addressDevice, .configureEndpoint, .evaluateContext, .resetEndpoint,
            .stopEndpoint, .setDequeuePointer, .resetDevice,
        ]
        let input = guest.memory.allocate(33 * 64)
        for kind in kinds {
            for slot in [1, guest.registers.slots] {
                let event = try driver.command(
                    .command(kind, slot: slot, endpoint: 1, parameter: input.rawValue))
                #expect(event.code == .slotNotEnabled, "\(kind) slot \(slot)")
            }
            for slot in [0, guest.registers.slots + 1, 255] {
                let event = try driver.command(
                    .command(kind, slot: slot, endpoint: 1, parameter: input.rawValue))
                #expect(noSuchSlot.contains(event.code), "\(kind) slot \(slot)")
            }
        }
    }

    @Test func `Disable Slot updates the slot context, and further commands fail`() throws {
        let slot = try guest.plug(device)
        try slot.disable()
        #expect(slot.slotContext.state == .disabledOrEnabled)
        #expect(
            try driver.command(.command(.disableSlot, slot: slot.number)).code == .slotNotEnabled)
    }

    @Test func `the device of a disabled slot can be addressed again`() throws {
        let slot = try guest.plug(device)
        try slot.disable()
        let again = try driver.enableSlot(port: slot.port)
        try again.address()
        #expect(again.slotContext.state == .addressed)
    }

    // MARK: - Address Device

    @Test func `an addressed device has a complete output context`() throws {
        let slot = try guest.plug(device)
        let context = slot.slotContext
        #expect(context.state == .addressed)
        #expect(context.rootHubPort == slot.port)
        #expect(context.speed == UInt32(device.speed.rawValue))
        #expect(context.contextEntries == 1)
        #expect(context.deviceAddress != 0)
        let control = slot.control.context
        #expect(control.state == .running)
        #expect(control.type == .control)
        #expect(control.maxPacketSize == 64)
        #expect(control.dequeuePointer == slot.control.ring.start)
        #expect(control.dequeueCycle)
    }

    @Test func `two devices have different addresses`() throws {
        let first = try guest.plug(device)
        let second = try guest.plug(TestDevice(.superSpeed))
        #expect(first.slotContext.deviceAddress != second.slotContext.deviceAddress)
    }

    @Test func `Address Device with BSR enters Default, and without BSR Addressed`() throws {
        let slot = try driver.enableSlot(port: enabledPort())
        try slot.address(blockingSetAddress: true)
        #expect(slot.slotContext.state == .default)
        #expect(slot.slotContext.deviceAddress == 0)
        #expect(slot.control.context.state == .running)
        #expect(try slot.control(getDescriptor).count == 18)
        try slot.address()
        #expect(slot.slotContext.state == .addressed)
        #expect(slot.slotContext.deviceAddress != 0)
        #expect(try slot.control(getDescriptor).count == 18)
    }

    private var getDescriptor: SetupPacket {
        SetupPacket(requestType: 0x80, request: 6, value: 0x100, index: 0, length: 18)
    }

    @Test func `Address Device with BSR fails in the Default state`() throws {
        let slot = try driver.enableSlot(port: enabledPort())
        try slot.address(blockingSetAddress: true)
        slot.prepareAddress()
        #expect(try slot.addressCommand(blockingSetAddress: true).code == .contextStateError)
        #expect(slot.slotContext.state == .default)
    }

    @Test(arguments: [false, true])
    func `an addressed device cannot be addressed again`(blocking: Bool) throws {
        let slot = try guest.plug(device)
        slot.prepareAddress()
        #expect(
            try slot.addressCommand(blockingSetAddress: blocking).code == .contextStateError)
        #expect(slot.slotContext.state == .addressed)
    }

    @Test func `Address Device for an empty port is a USB Transaction Error`() throws {
        let slot = try driver.enableSlot(port: 3)
        slot.prepareAddress()
        slot.writeInput(0, GuestSlotContext(port: 3, speed: 3, contextEntries: 1).words)
        #expect(try slot.addressCommand().code == .usbTransactionError)
        #expect(slot.slotContext.state == .disabledOrEnabled)
    }

    @Test(arguments: [0, 17, 255])
    func `Address Device for a port that does not exist is an error`(port: Int) throws {
        let slot = try driver.enableSlot(port: enabledPort())
        slot.prepareAddress()
        slot.writeInput(0, GuestSlotContext(port: port, speed: 3, contextEntries: 1).words)
        #expect(badInput.contains(try slot.addressCommand().code))
    }

    @Test(arguments: [0, 1, 2] as [UInt32])
    func `Address Device needs the slot and control endpoint contexts`(add: UInt32) throws {
        let slot = try driver.enableSlot(port: enabledPort())
        slot.prepareAddress()
        guest.memory.store(add, at: slot.inputContext + 4)
        #expect(badInput.contains(try slot.addressCommand().code))
        #expect(slot.slotContext.state == .disabledOrEnabled)
    }

    @Test func `an input context of all ones is an error`() throws {
        let slot = try driver.enableSlot(port: enabledPort())
        guest.memory.fill(0xff, at: slot.inputContext, count: 33 * guest.registers.contextSize)
        #expect(try slot.addressCommand().code != .success)
        try guest.expectRecovery()
    }

    @Test func `the controller survives input contexts outside guest memory`() throws {
        let slot = try driver.enableSlot(port: enabledPort())
        driver.commandRing.push(
            .command(.addressDevice, slot: slot.number, parameter: guest.nowhere.rawValue))
        driver.ringDoorbell(slot: 0, target: 0)
        let events = driver.takeAll()
        #expect(guest.hasFailed || events.contains { $0.code != .success })
        try guest.expectRecovery()
    }

    @Test func `the controller survives a device context outside guest memory`() throws {
        let slot = try driver.enableSlot(port: enabledPort())
        slot.prepareAddress()
        guest.memory.store(guest.nowhere.rawValue, at: driver.deviceContexts + slot.number * 8)
        driver.commandRing.push(
            .command(.addressDevice, slot: slot.number, parameter: slot.inputContext.rawValue))
        driver.ringDoorbell(slot: 0, target: 0)
        let events = driver.takeAll()
        #expect(guest.hasFailed || events.contains { $0.code != .success })
        try guest.expectRecovery()
    }

    // MARK: - Reset Device

    @Test func `Reset Device leaves the slot in Default with one endpoint`() throws {
        let slot = try guest.plug(device)
        let endpoint = try slot.configureOne(.bulkIn(1))
        try driver.succeed(.command(.resetDevice, slot: slot.number))
        #expect(slot.slotContext.state == .default)
        #expect(slot.slotContext.contextEntries == 1)
        #expect(slot.slotContext.deviceAddress == 0)
        #expect(endpoint.context.state == .disabled)
        #expect(slot.control.context.state == .running)
        try slot.address()
        #expect(slot.slotContext.state == .addressed)
    }

    @Test func `Reset Device needs an addressed slot`() throws {
        let slot = try driver.enableSlot(port: enabledPort())
        #expect(
            try driver.command(.command(.resetDevice, slot: slot.number)).code
                == .contextStateError)
        try slot.address(blockingSetAddress: true)
        #expect(
            try driver.command(.command(.resetDevice, slot: slot.number)).code
                == .contextStateError)
    }

    @Test func `Reset Device cancels transfers in flight`() throws {
        let slot = try guest.plug(device)
        let endpoint = try slot.configureOne(.bulkIn(1))
        endpoint.submit(endpoint.trbs(guest.memory.allocate(64), 64))
        guest.machine.pass(.milliseconds(1))
        #expect(device.pending.count == 1)
        try driver.succeed(.command(.resetDevice, slot: slot.number))
        #expect(device.pending.isEmpty)
    }
}
