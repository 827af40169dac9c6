// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// The ways of drivers other than Linux, each as a short scenario of what it does and depends on.
struct FirmwareFlavourTests {
    private let descriptor = SetupPacket(
        requestType: 0x80, request: 6, value: 0x100, index: 0, length: 18)

    /// EDK2: polls, without interrupts; waits for an event of the first *and* the last TRB of a TD.
    @Test func `EDK2 gets an event for each stage without interrupts`() throws {
        var options = GuestDriver.Options()
        options.enablesInterrupts = false
        let guest = try Guest(options: options)
        let device = TestDevice()
        let slot = try guest.plug(device)
        let buffer = guest.memory.allocate(18)
        let addresses = slot.control.submit([
            .setup(descriptor, .interruptOnCompletion),
            .data(buffer, 18, .in, [.interruptOnCompletion, .interruptOnShortPacket]),
            .status(.out, .interruptOnCompletion),
        ])
        #expect(guest.driver.takeAll().map(\.pointer) == addresses)
        #expect(guest.machine.interrupts.total == 0)
        #expect(guest.memory.bytes(at: buffer, count: 18) == device.deviceDescriptor)
    }

    /// EDK2 at ExitBootServices: HCRST without Disable Slot; the next driver begins from nothing.
    @Test func `a controller reset forgets slots and transfers, not devices`() throws {
        let guest = try Guest()
        let device = TestDevice()
        let slot = try guest.plug(device)
        let endpoint = try slot.configureOne(.bulkIn(1))
        endpoint.submit(endpoint.trbs(guest.memory.allocate(64), 64))
        guest.machine.pass(.milliseconds(1))
        #expect(device.pending.count == 1)
        try guest.driver.start()
        #expect(device.pending.isEmpty)
        let again = try guest.driver.address(port: slot.port)
        #expect(again.number == 1)
        #expect(try again.control(descriptor).count == 18)
    }

    /// SeaBIOS: a USB 3 port must be in U0 and enabled already; a USB 2 port must be in Polling, then
    /// is reset and must be enabled within 100 ms. All pointers are below 4 GiB.
    @Test func `SeaBIOS finds devices by the link state`() throws {
        var options = GuestDriver.Options()
        options.enablesInterrupts = false
        options.eventRings = [[16]]
        options.commandRing = [16]
        let guest = try Guest(
            options: options, memory: GuestRAM(size: 4 << 20, base: 0x0010_0000))
        try guest.machine.attach(TestDevice(.superSpeed))
        try guest.machine.attach(TestDevice(.high))
        guest.machine.pass(.milliseconds(100))
        #expect(guest.machine.read32(guest.registers.pageSize) == 1)
        let ports = guest.driver.connectedPorts
        #expect(ports == [1, 9])
        #expect(guest.driver.port(9).linkState == .u0)
        #expect(guest.driver.port(9).contains(.enabled))
        #expect(guest.driver.port(1).linkState == .polling)
        guest.driver.writePort(1, .reset)
        try guest.driver.waitForPort(1, "enabled", limit: .milliseconds(100)) {
            $0.contains(.enabled)
        }
        for number in ports {
            let slot = try guest.driver.address(port: number)
            #expect(try slot.control(descriptor).count == 18)
        }
    }

    /// FreeBSD: 208 events, 16 commands, HSEE, pointers written twice, port changes only seen in
    /// USBSTS, Address Device first with BSR and then without.
    @Test func `FreeBSD learns of ports by Port Change Detect alone`() throws {
        var options = GuestDriver.Options()
        options.eventRings = [[208]]
        options.commandRing = [16]
        let guest = try Guest(options: options)
        let machine = guest.machine
        machine.write32(0, at: guest.registers.notificationControl)
        machine.write32(
            machine.read32(guest.registers.command) | GuestDriver.Command.hostSystemErrorEnable,
            at: guest.registers.command)
        let device = TestDevice()
        func change() throws {
            #expect(machine.advance { guest.status & GuestDriver.Status.portChange != 0 })
            machine.write32(GuestDriver.Status.portChange, at: guest.registers.status)
            #expect(guest.status & GuestDriver.Status.portChange == 0)
        }
        try machine.attach(device)
        try change()
        guest.driver.clearPort(1)
        guest.driver.writePort(1, .reset)
        try change()
        try guest.driver.waitForPort(1, "reset") { $0.contains([.enabled, .resetChange]) }
        guest.driver.clearPort(1)
        let slot = try guest.driver.enableSlot(port: 1)
        try slot.address(blockingSetAddress: true)
        #expect(try slot.control(descriptor).count == 18)
        try slot.address()
        #expect(slot.slotContext.deviceAddress != 0)
        machine.detach(device)
        try change()
    }

    /// FreeBSD: commands have 100 ms each, whatever devices do.
    @Test func `commands are quick while a device is silent`() throws {
        let guest = try Guest()
        let device = TestDevice { _ in .hold }
        device.cancelsAtOnce = false
        let slot = try guest.plug(device)
        let endpoints = try slot.configure(.bulkIn(1), .bulkOut(1))
        for endpoint in endpoints {
            endpoint.submit(endpoint.trbs(guest.memory.allocate(64), 64))
        }
        guest.machine.pass(.milliseconds(1))
        let commands: [GuestTRB] = [
            .command(.noOpCommand),
            .command(.stopEndpoint, slot: slot.number, endpoint: 2),
            .command(.resetDevice, slot: slot.number),
            .command(.disableSlot, slot: slot.number),
        ]
        for command in commands {
            let before = guest.machine.now
            #expect(try guest.driver.command(command).code == .success)
            #expect(guest.machine.now - before < .milliseconds(100))
        }
    }

    /// Windows: Normal TRBs chained to an Event Data TRB that alone interrupts, on interrupters of
    /// its own.
    @Test func `Windows gets whole lengths from event data on its own interrupter`() throws {
        var options = GuestDriver.Options()
        options.eventRings = [[64], [64]]
        options.waitsForInterrupts = true
        let guest = try Guest(options: options)
        let device = TestDevice { transfer in
            transfer.endpoint == .control
                ? nil : .give(Array(repeating: 7, count: min(5000, transfer.buffer.count)))
        }
        let endpoint = try guest.plug(device, .bulkIn(1, segments: [16, 16]))
        let buffer = guest.memory.allocate(8192, alignment: 4096)
        for number in 0..<20 {
            endpoint.submit([
                .normal(buffer, 4096, .chain),
                .normal(buffer + 4096, 4096, [.chain, .evaluateNext]),
                GuestTRB.eventData(UInt64(number) << 32, .interruptOnCompletion).interrupter(1),
            ])
            let event = try endpoint.event()
            #expect(event.interrupter == 1)
            #expect(event.isEventData)
            #expect(event.parameter == UInt64(number) << 32)
            #expect(event.length == 5000)
            #expect(event.code == .shortPacket)
        }
    }

    /// Windows writes Resume itself, and the guest of a laptop lid suspends and resumes ports often.
    @Test func `ports suspend and resume many times`() throws {
        let guest = try Guest()
        let slot = try guest.plug(TestDevice())
        for _ in 0..<20 {
            guest.driver.setLinkState(slot.port, .u3)
            try guest.driver.waitForPort(slot.port, "suspend") { $0.linkState == .u3 }
            guest.driver.setLinkState(slot.port, .resume)
            guest.machine.pass(.milliseconds(20))
            guest.driver.setLinkState(slot.port, .u0)
            try guest.driver.waitForPort(slot.port, "resume") { $0.linkState == .u0 }
            guest.driver.clearPort(slot.port)
            #expect(try slot.control(descriptor).count == 18)
        }
    }

    /// Linux: an interrupt-driven driver over memory that is reached by messages.
    @Test(arguments: SimulatedMachine.MemoryKind.allCases)
    func `Linux reads and writes through interrupts`(kind: SimulatedMachine.MemoryKind) throws {
        var options = GuestDriver.Options()
        options.waitsForInterrupts = true
        options.moderationInterval = 160
        let guest = try Guest(kind, options: options)
        let device = TestDevice(.superSpeed) { transfer in
            switch (transfer.endpoint == .control, transfer.direction) {
            case (true, _): nil
            case (false, .in):
                .give((0..<transfer.buffer.count).map { UInt8(truncatingIfNeeded: $0 / 3) })
            case (false, .out): .accept
            }
        }
        let endpoints = try guest.plug(device).configure(.bulkIn(1), .bulkOut(2))
        for count in [31, 13, 512, 4096, 70_000, 122_880] {
            let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 / 3) }
            #expect(try endpoints[0].receive(count) == bytes)
            #expect(try endpoints[1].send(bytes) == count)
            #expect(device.records.last?.bytes == bytes)
        }
        #expect(guest.memory.damagedCanaries().isEmpty)
    }
}
