// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Platform
import RemoteGuest
import Service
import Testing
import USB
import VFIOClient

/// Guest memory that is mapped, unmapped and accessed by messages.
struct MemoryTests {
    private let bench: Bench
    private let device = TestDevice { transfer in
        if case .control = transfer.kind { nil } else { .hold }
    }

    init() throws {
        bench = try Bench()
        try bench.server.bus.attach(device)
    }

    /// A machine whose guest has submitted a transfer that the device keeps.
    private func machineWithTransferInFlight(_ vmm: VMMKind) throws -> RemoteMachine {
        let machine = try bench.machine(vmm)
        let driver = GuestDriver(machine)
        try driver.start()
        let slot = try driver.addressNewDevice()
        let endpoint = try slot.configureOne(.bulkIn(1))
        endpoint.submit(.normal(machine.memory.allocate(512), 512, .interruptOnCompletion))
        #expect(try bench.turn { !device.pending.isEmpty })
        return machine
    }

    /// Memory that is not shared needs a client that answers while the server waits, so only
    /// end-to-end tests cover it.
    @Test("commands are executed for each kind of VMM", arguments: Bench.vmms)
    func commands(vmm: VMMKind) throws {
        let machine = try bench.machine(vmm)
        let driver = GuestDriver(machine)
        try driver.start()
        for _ in 0..<40 { try driver.succeed(.command(.noOpCommand)) }
        #expect(machine.failure == nil)
        #expect(machine.memory.damagedCanaries().isEmpty)
    }

    /// Overwrites all guest memory, as a guest that reuses it.
    private func reuseMemory(_ machine: RemoteMachine) {
        machine.memory.fill(0x22, at: machine.memory.base, count: machine.memory.size)
    }

    private func isReusedMemoryIntact(_ machine: RemoteMachine) -> Bool {
        machine.memory.window(at: machine.memory.base, count: machine.memory.size)
            .allSatisfy { $0 == 0x22 }
    }

    @Test func `DMA_UNMAP is answered at once though a device keeps its transfer`() throws {
        device.cancelsAtOnce = false
        let machine = try machineWithTransferInFlight(.cloudHypervisor)
        try machine.client.unmapMemory(
            at: machine.memory.base.rawValue, size: UInt64(machine.memory.size))
        #expect(device.pending.count == 1)
        reuseMemory(machine)
        device.answerNext(.give([UInt8](repeating: 7, count: 512)))
        #expect(try machine.client.readConfiguration(0, as: UInt32.self) == 0x000d_1b36)
        #expect(isReusedMemoryIntact(machine))
    }

    @Test func `DEVICE_RESET is answered at once though a device keeps its transfer`() throws {
        device.cancelsAtOnce = false
        let machine = try machineWithTransferInFlight(.qemu)
        let client = try #require(machine.client as? QEMUClient)
        try client.reset()
        #expect(device.pending.count == 1)
        reuseMemory(machine)
        device.answerNext(.give([UInt8](repeating: 7, count: 512)))
        #expect(try client.readConfiguration(0, as: UInt32.self) == 0x000d_1b36)
        #expect(isReusedMemoryIntact(machine))
    }

    @Test func `a client that crashes with transfers in flight can be followed by another`() throws
    {
        device.cancelsAtOnce = false
        let first = try machineWithTransferInFlight(.qemu)
        first.client.kill()
        let second = try bench.machine()
        reuseMemory(first)
        device.answerNext(.give([UInt8](repeating: 7, count: 512)))
        #expect(isReusedMemoryIntact(first))
        let driver = GuestDriver(second)
        try driver.start()
        try driver.succeed(.command(.noOpCommand))
    }

    @Test func `memory can be unmapped and mapped again while the controller runs`() throws {
        let machine = try bench.machine(.qemu)
        let client = try #require(machine.client as? QEMUClient)
        let driver = GuestDriver(machine)
        try driver.start()
        let rom = try SharedMemory(size: 65536)
        for _ in 0..<50 {
            try client.add(.init(address: 0xc0000, contents: rom, isShared: false))
            try driver.succeed(.command(.noOpCommand))
            try client.remove(address: 0xc0000)
        }
    }

    @Test func `a controller whose memory is unmapped reports an error and can be reset`() throws {
        let machine = try bench.machine()
        let driver = GuestDriver(machine)
        try driver.start()
        let memory = machine.memory
        try machine.client.unmapMemory(at: memory.base.rawValue, size: UInt64(memory.size))
        driver.ringDoorbell(slot: 0, target: 0)
        driver.commandRing.push(.command(.noOpCommand))
        driver.ringDoorbell(slot: 0, target: 0)
        try driver.waitForError()
        let descriptor = try memory.descriptor()
        try machine.client.mapMemory(
            descriptor.rawValue, at: memory.base.rawValue, size: UInt64(memory.size))
        try driver.start()
        try driver.succeed(.command(.noOpCommand))
    }
}

extension GuestDriver {
    /// Waits for Host System Error or Host Controller Error.
    fileprivate func waitForError() throws {
        let errors = Status.hostSystemError | Status.controllerError
        guard
            machine.advance(until: { machine.read32(registers.status) & errors != 0 })
        else { throw GuestError.timeout("an error") }
    }
}
