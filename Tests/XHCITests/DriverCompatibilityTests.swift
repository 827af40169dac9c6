// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Sequences that specific guest drivers use and depend on, one short scenario each.
struct DriverCompatibilityTests {
    private let descriptor = SetupPacket(
        requestType: 0x80, request: 6, value: 0x100, index: 0, length: 18)

    /// EDK2 polls without interrupts, and waits for the events of the first *and* the last TRB of a
    /// TD.
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

    /// EDK2 resets the controller at ExitBootServices without Disable Slot. The next driver starts
    /// afresh.
    @Test func `HCRST discards slots and transfers, and devices stay attached`() throws {
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

    /// SeaBIOS expects a USB 3 port to be enabled and in U0, and a USB 2 port to be in Polling and,
    /// after a reset, enabled within 100 ms. All its pointers are below 4 GiB.
    @Test func `SeaBIOS detects devices by the link state`() throws {
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

    /// FreeBSD has an event ring of 208 TRBs and a command ring of 16, sets HSEE, detects port
    /// changes in USBSTS only, and executes Address Device first with BSR and then without.
    @Test func `FreeBSD detects port changes by PCD alone`() throws {
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

    /// FreeBSD before 2020, or with `hw.usb.xhci.ctlquirk=0`, queues a Data Stage in TDs of 1024
    /// bytes. The first is a Data Stage TRB, the others are Normal TRBs, in old versions Data Stage
    /// TRBs. The Status Stage is queued with the last. After a short packet there is none, and the
    /// next request follows.
    @Test(arguments: [(3000, true), (3000, false), (1500, true), (2048, true), (4000, true)])
    func `FreeBSD reads a long descriptor in several data TDs`(given: Int, usesNormal: Bool) throws
    {
        let guest = try Guest()
        let bytes = (0..<given).map { UInt8(truncatingIfNeeded: $0 / 5) }
        let device = TestDevice { transfer in
            guard case .control(let setup) = transfer.kind, setup.value == 0x200 else { return nil }
            return .give(Array(bytes[..<min(given, transfer.buffer.count)]))
        }
        let slot = try guest.plug(device)
        var ring = try FreeBSDRing(slot.control)
        let request = SetupPacket(
            requestType: 0x80, request: 6, value: 0x200, index: 0, length: 3000)
        let buffer = guest.memory.allocate(1024)
        let flags: GuestTRB.Flags = [.interruptOnCompletion, .interruptOnShortPacket]
        let setup = GuestTRB.setup(request, .interruptOnCompletion)
        let status = GuestTRB.status(.out, .interruptOnCompletion)
        for _ in 0..<3 {
            var received: [UInt8] = []
            var residue = 0
            while received.count < 3000, residue == 0 {
                let size = min(1024, 3000 - received.count)
                let isFirst = received.isEmpty
                let data: GuestTRB =
                    isFirst || !usesNormal
                    ? .data(buffer, size, .in, flags) : .normal(buffer, size, flags)
                let isLast = received.count + size == 3000
                let tds = (isFirst ? [setup] : []) + [data] + (isLast ? [status] : [])
                let events = ring.run(tds)
                try #require(events.count == tds.count)
                residue = events[isFirst ? 1 : 0].length
                received += guest.memory.bytes(at: buffer, count: size - residue)
            }
            #expect(received == Array(bytes.prefix(3000)))
        }
        #expect(device.records.suffix(3).allSatisfy { $0.setup == request && $0.count == 3000 })
        #expect(try slot.control.stop().code == .success)
    }

    /// The transfer ring of FreeBSD: the ring itself has only Link TRBs. Each leads to the TDs of
    /// one transfer, and each TD is in memory of its own and ends in a Link TRB with IOC; the last
    /// one leads back to the ring.
    private struct FreeBSDRing {
        private let endpoint: GuestEndpoint
        /// The next Link TRB of the ring.
        private var next: GuestAddress
        private var memory: GuestRAM { endpoint.driver.memory }

        init(_ endpoint: GuestEndpoint) throws {
            self.endpoint = endpoint
            next = endpoint.driver.memory.allocate(256, alignment: 64)
            try endpoint.stop()
            try endpoint.setDequeuePointer(next, cycle: true)
        }

        /// Queues TDs of one TRB each and rings the doorbell.
        ///
        /// - Returns: the first event of each TD, which is the one that FreeBSD evaluates.
        mutating func run(_ tds: [GuestTRB]) -> [GuestEvent] {
            let addresses = tds.map { _ in memory.allocate(32, alignment: 64) }
            for (number, td) in tds.enumerated() {
                let target = number + 1 < tds.count ? addresses[number + 1] : next + 16
                write(td, at: addresses[number])
                write(.link(to: target, .interruptOnCompletion), at: addresses[number] + 16)
            }
            write(.link(to: addresses[0]), at: next)
            next = next + 16
            endpoint.ringDoorbell()
            let events = endpoint.driver.takeAll()
            return addresses.compactMap { address in
                events.first { $0.pointer == address || $0.pointer == address + 16 }
            }
        }

        private func write(_ trb: GuestTRB, at address: GuestAddress) {
            memory.store(trb.parameter, at: address)
            memory.store(trb.status, at: address + 8)
            memory.store(trb.control | 1, at: address + 12)
        }
    }

    /// FreeBSD gives each command 100 ms.
    @Test func `commands complete in 100 ms while a device completes nothing`() throws {
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

    /// Windows chains Normal TRBs to an Event Data TRB, the only one with IOC, on a secondary
    /// interrupter.
    @Test func `Windows gets EDTLA in Event Data events on its own interrupter`() throws {
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

    /// Windows writes PLS = Resume and then U0.
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

    /// Linux is driven by interrupts. Its memory is mapped, or reached by messages.
    @Test(arguments: SimulatedMachine.MemoryKind.allCases)
    func `Linux reads and writes with interrupts`(kind: SimulatedMachine.MemoryKind) throws {
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
