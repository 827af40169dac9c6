// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// A device accesses the memory of a transfer only until the guest is notified of its end
/// (xHCI 4.6.4, 4.6.6, 4.6.9, 4.6.11, 4.2).
struct MemoryLeaseTests {
    let guest: Guest
    let device = TestDevice()
    let slot: GuestSlot
    let input: GuestEndpoint
    let output: GuestEndpoint
    let buffer: GuestAddress
    var driver: GuestDriver { guest.driver }
    var machine: SimulatedMachine { guest.machine }

    private static let kinds = SimulatedMachine.MemoryKind.allCases

    /// A guest with an IN and an OUT transfer of 512 bytes at a device that completes neither.
    init() throws { try self.init(.local) }

    private init(_ kind: SimulatedMachine.MemoryKind) throws {
        guest = try Guest(kind)
        device.onTransfer = { $0.endpoint.number == 0 ? nil : .hold }
        slot = try guest.plug(device)
        let endpoints = try slot.configure(.bulkIn(1), .bulkOut(2))
        input = endpoints[0]
        output = endpoints[1]
        buffer = guest.memory.allocate(1024)
        guest.memory.fill(0x11, at: buffer, count: 1024)
        input.submit(.normal(buffer, 512, .interruptOnCompletion))
        output.submit(.normal(buffer + 512, 512, .interruptOnCompletion))
        guest.machine.pass(.milliseconds(1))
        try #require(device.pending.count == 2)
        device.cancelsAtOnce = false
    }

    /// The ends of a transfer that are not its completion by the device.
    enum End: CaseIterable {
        case stopEndpoint, disableSlot, resetDevice, deconfigure, hostControllerReset, deviceReset
        case detach, halt
    }

    private func end(_ end: End) throws {
        switch end {
        case .stopEndpoint:
            #expect(try input.stop().code == .success)
            #expect(try output.stop().code == .success)
        case .disableSlot: try driver.succeed(.command(.disableSlot, slot: slot.number))
        case .resetDevice: try driver.succeed(.command(.resetDevice, slot: slot.number))
        case .deconfigure:
            try driver.succeed(
                .command(
                    .configureEndpoint, slot: slot.number,
                    parameter: slot.inputContext.rawValue, .deconfigure))
        case .hostControllerReset:
            machine.write32(GuestDriver.Command.reset, at: guest.registers.command)
            machine.turn()
            #expect(
                machine.read32(guest.registers.command) & GuestDriver.Command.reset == 0)
        case .deviceReset: machine.controller.reset()
        case .detach:
            machine.detach(device)
            machine.turn()
        case .halt:
            machine.write32(0, at: guest.registers.command)
            machine.pass(.milliseconds(20))
            #expect(guest.status & GuestDriver.Status.halted != 0)
        }
    }

    @Test(arguments: End.allCases, kinds)
    func `a device that continues after the end does not change guest memory`(
        end: End, kind: SimulatedMachine.MemoryKind
    ) throws {
        let test = try Self(kind)
        let transfers = test.device.pending
        try test.end(end)
        // The guest uses the memory for something else.
        test.guest.memory.fill(0x22, at: test.buffer, count: 1024)
        #expect(transfers[0].buffer.copy(from: [UInt8](repeating: 0xee, count: 512)) == 0)
        #expect(transfers[1].buffer.bytes().isEmpty)
        for transfer in transfers {
            test.device.complete(transfer.completion(.completed, transferred: 512))
        }
        test.machine.pass(.milliseconds(50))
        #expect(
            test.guest.memory.bytes(at: test.buffer, count: 1024)
                == [UInt8](repeating: 0x22, count: 1024))
    }

    @Test(arguments: [End.disableSlot, .resetDevice, .deconfigure])
    func `a command that drops transfers does not wait for their device`(end: End) throws {
        let before = machine.now
        try self.end(end)
        #expect(machine.now == before)
        #expect(Set(device.cancelled).count == 2)
        #expect(guest.answersCommands)
    }

    @Test func `Stop Endpoint times out if the device does not cancel`() throws {
        let before = machine.now
        #expect(try input.stop().code == .success)
        #expect(machine.now - before <= .milliseconds(40))
        #expect(try input.event().code == .stopped)
        // The TD resumes with the next doorbell, and the device's late completion is ignored.
        let late = device.pending[0]
        device.onTransfer = { _ in .give([7, 8]) }
        device.complete(late.completion(.completed, transferred: 512))
        input.ringDoorbell()
        let event = try input.event()
        #expect(event.code == .shortPacket && event.length == 510)
        #expect(guest.memory.bytes(at: buffer, count: 3) == [7, 8, 0x11])
    }

    @Test func `a detached device fails its transfers at once, and is ignored from then on`() throws
    {
        let port = try #require(device.port)
        let id = device.pending[0].id
        machine.detach(device)
        let ends = driver.takeAll(after: .zero).filter(\.isTransfer)
        #expect(ends.map(\.code) == [.usbTransactionError, .usbTransactionError])
        port.disconnect()
        port.wake()
        port.complete(Transfer.Completion(id: id, status: .completed, transferred: 512))
        #expect(driver.takeAll(after: .milliseconds(5)).filter(\.isTransfer).isEmpty)
        #expect(guest.answersCommands)
    }

    @Test func `TDs that a device completes together with another do not delay commands`() throws {
        for _ in 0..<3 {
            input.submit(.normal(guest.memory.allocate(512), 512, .interruptOnCompletion))
        }
        machine.pass(.milliseconds(1))
        device.cancelsAtOnce = true
        device.cancelsAllAtOnce = true
        device.answerNext(.end(.stalled, transferred: 0))
        #expect(try input.event().code == .stall)
        driver.commandRing.push(
            .command(.resetEndpoint, slot: slot.number, endpoint: input.contextIndex))
        driver.ringDoorbell(slot: 0, target: 0)
        #expect(driver.takeAll(after: .milliseconds(1)).map(\.code).contains(.success))
    }

    // MARK: - Unmapping

    private func unmap() throws {
        let memory = guest.memory
        let region = try machine.bus.unmap(memory.base, count: UInt64(memory.size))
        machine.controller.endAccess(to: region)
    }

    private func mapAgain() throws {
        try machine.bus.map(
            guest.memory.descriptor(), offset: 0, count: UInt64(guest.memory.size),
            at: guest.memory.base, writable: true)
    }

    @Test func `no transfer keeps unmapped memory mapped`() throws {
        let memory = guest.memory
        weak var region: MemoryRegion?
        do {
            let unmapped = try machine.bus.unmap(memory.base, count: UInt64(memory.size))
            region = unmapped
            machine.controller.endAccess(to: unmapped)
        }
        #expect(region == nil)
        #expect(device.pending.count == 2)
    }

    @Test func `a device that continues after an unmapping does not change the memory`() throws {
        try unmap()
        guest.memory.fill(0x22, at: buffer, count: 1024)
        #expect(device.pending[0].buffer.copy(from: [UInt8](repeating: 0xee, count: 512)) == 512)
        // An OUT transfer has the bytes that the memory had when it was unmapped.
        #expect(device.pending[1].buffer.bytes() == [UInt8](repeating: 0x11, count: 512))
        #expect(
            guest.memory.bytes(at: buffer, count: 1024) == [UInt8](repeating: 0x22, count: 1024))
    }

    @Test func `data of a transfer arrives in memory that was remapped meanwhile`() throws {
        try unmap()
        device.pending[0].buffer.copy(from: [1, 2, 3, 4])
        try mapAgain()
        device.answerNext(.end(.completed, transferred: 4))
        device.answerNext(.accept)
        #expect(try input.event().code == .shortPacket)
        #expect(guest.memory.bytes(at: buffer, count: 5) == [1, 2, 3, 4, 0x11])
        #expect(try output.event().code == .success)
    }

    @Test func `data that was in the memory before it was remapped stays there`() throws {
        device.pending[0].buffer.copy(from: [1, 2])
        try unmap()
        device.pending[0].buffer.copy(from: [3, 4], at: 2)
        try mapAgain()
        device.answerNext(.end(.completed, transferred: 4))
        #expect(try input.event().code == .shortPacket)
        #expect(guest.memory.bytes(at: buffer, count: 5) == [1, 2, 3, 4, 0x11])
    }

    @Test func `a transfer into memory that stays unmapped ends with a Data Buffer Error`() throws {
        let other = GuestAddress(0x9_0000_0000)
        try machine.bus.map(
            guest.memory.descriptor(), offset: 0, count: 65536, at: other, writable: true)
        input.submit(.normal(other, 512, .interruptOnCompletion))
        machine.pass(.milliseconds(1))
        device.answerNext(.give([1]))
        #expect(try input.event().code == .shortPacket)
        let region = try machine.bus.unmap(other, count: 65536)
        machine.controller.endAccess(to: region)
        machine.pass(.milliseconds(100))
        // The device still has both transfers.
        #expect(device.pending.map(\.endpoint.number) == [2, 1])
        device.answerNext(.accept)
        #expect(try output.event().code == .success)
        device.answerNext(.give([1]))
        #expect(try input.event().code == .dataBufferError)
        try guest.expectRecovery()
    }

    @Test func `memory for a transfer that has ended is granted to the next`() throws {
        device.cancelsAtOnce = true
        while device.answerNext(.accept) {}
        _ = driver.takeAll(after: .milliseconds(1))
        device.onTransfer = { _ in .give([5]) }
        for _ in 0..<100 { #expect(try input.receive(64) == [5]) }
    }

    @Test func `a buffer that a device keeps after completion accesses nothing`() throws {
        let kept = device.pending[0]
        device.answerNext(.give([1, 2]))
        #expect(try input.event().code == .shortPacket)
        device.onTransfer = { $0.endpoint.number == 0 ? nil : .hold }
        input.submit(.normal(buffer, 512, .interruptOnCompletion))
        machine.pass(.milliseconds(1))
        #expect(kept.buffer.copy(from: [9, 9, 9]) == 0)
        #expect(guest.memory.bytes(at: buffer, count: 3) == [1, 2, 0x11])
    }
}
