// SPDX-License-Identifier: Apache-2.0

import GuestKit
import RemoteGuest
import Testing
import VFIOClient

/// The PCI function as a VMM sees it: regions, configuration space, reset and interrupts.
struct FunctionTests {
    private let bench: Bench

    init() throws { bench = try Bench() }

    @Test("each kind of VMM can start", arguments: VMMKind.allCases)
    func start(vmm: VMMKind) throws {
        let machine = try bench.machine(vmm)
        #expect(machine.client.msix?.vectors == 8)
        #expect(machine.client.msix?.tableRegion == 2)
        #expect(machine.client.msix?.pendingOffset == 0x1000)
        #expect(machine.client.regions[0].size == 0x4000)
        #expect(machine.client.regions[2].size == 0x2000)
        #expect(machine.client.regions[7].size == 0x1000)
        #expect(machine.failure == nil)
    }

    @Test func `sizing finds the registers and the interrupt memory, and nothing else`() throws {
        let client = try bench.client()
        #expect(client.baseAddresses.map(\.index) == [0, 2])
        #expect(client.baseAddresses.map(\.size) == [0x4000, 0x2000])
        #expect(client.baseAddresses.map(\.is64Bit) == [true, false])
    }

    @Test func `the configuration space is that of a USB 3 controller`() throws {
        let client = try bench.client()
        #expect(try client.readConfiguration(0, as: UInt32.self) == 0x000d_1b36)
        #expect(try client.readConfiguration(8, as: UInt32.self) >> 8 == 0x0c0330)
        #expect(try client.readConfiguration(0x2c, as: UInt32.self) == 0x1100_1af4)
        #expect(try client.readConfiguration(0x60, as: UInt8.self) == 0x30)
        #expect(try client.readConfiguration(0x61, as: UInt8.self) == 0x20)
        #expect(try client.readConfiguration(0x3d, as: UInt8.self) == 0)
        #expect(try client.readConfiguration(0x100, as: UInt32.self) == 0)
    }

    @Test func `HCIVERSION is 1_1 in a read of any width`() throws {
        let client = try bench.client()
        let whole = try client.readRegister(0, as: UInt32.self)
        #expect(whole >> 16 == 0x0110)
        #expect(try client.readRegister(2, as: UInt16.self) == 0x0110)
        #expect(try client.readRegister(0, as: UInt8.self) == UInt8(whole & 0xff))
        #expect(try client.readRegister(0, as: UInt64.self) & 0xffff_ffff == UInt64(whole))
    }

    @Test func `DEVICE_RESET may be the first request`() throws {
        let client = try bench.client(resetsFirst: true)
        #expect(try client.readConfiguration(0, as: UInt32.self) == 0x000d_1b36)
    }

    @Test func `DEVICE_RESET resets registers and configuration space and keeps eventfds`() throws {
        let machine = try bench.machine(.qemu)
        let client = try #require(machine.client as? QEMUClient)
        let configure = UInt64(GuestRegisters(machine).configure)
        try client.writeRegister(configure, UInt32(5))
        try client.writeConfiguration(4, UInt16(6))
        #expect(try client.readRegister(configure, as: UInt32.self) == 5)
        try client.reset()
        #expect(try client.readRegister(configure, as: UInt32.self) == 0)
        #expect(try client.readConfiguration(4, as: UInt16.self) == 0)
        try client.trigger(3)
        #expect(try client.waitForInterrupt(3))
    }

    @Test func `DEVICE_RESET may be repeated`() throws {
        let machine = try bench.machine(.qemu)
        let client = try #require(machine.client as? QEMUClient)
        for _ in 0..<100 { try client.reset() }
        #expect(try client.readConfiguration(0, as: UInt32.self) == 0x000d_1b36)
    }

    @Test("a vector reaches its eventfd and no other", arguments: [0, 7])
    func vector(number: Int) throws {
        let machine = try bench.machine()
        try machine.client.trigger(UInt32(number))
        #expect(try machine.client.waitForInterrupt(number))
        for other in 0..<8 where other != number {
            #expect(machine.interruptCount(vector: other) == 0)
        }
    }

    @Test func `a masked message is pending until its vector is unmasked`() throws {
        let machine = try bench.machine()
        let client = machine.client
        try client.setIRQs(IRQSet.dataNone | IRQSet.mask, start: 2, count: 1)
        try client.trigger(2)
        #expect(machine.interruptCount(vector: 2) == 0)
        #expect(try client.readRegion(2, at: 0x1000, count: 8) == [4, 0, 0, 0, 0, 0, 0, 0])
        try client.setIRQs(IRQSet.dataNone | IRQSet.unmask, start: 2, count: 1)
        #expect(try client.waitForInterrupt(2))
        #expect(try client.readRegion(2, at: 0x1000, count: 8) == Array(repeating: 0, count: 8))
    }

    @Test func `a message is pending until its vector has an eventfd`() throws {
        let client = try bench.client()
        try client.trigger(1)
        #expect(try client.readRegion(2, at: 0x1000, count: 1) == [2])
        try client.enableMSIX()
        #expect(try client.waitForInterrupt(1))
    }

    @Test func `the MSI-X table keeps what the guest writes`() throws {
        let client = try bench.client()
        let entry: [UInt8] = [0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, 0, 0, 0, 0]
        try client.writeRegion(2, at: 0x10, entry)
        #expect(try client.readRegion(2, at: 0x10, count: 16) == entry)
        #expect(try client.readRegion(2, at: 0x800, count: 4) == [0, 0, 0, 0])
    }
}

extension VMMClient {
    /// SET_IRQS for MSI-X without data.
    func setIRQs(_ flags: UInt32, start: UInt32, count: UInt32) throws {
        let reply = try wire.request(
            WireMessage.Command.setIRQs,
            WireMessage.setIRQs(flags: flags, index: IRQ.msix, start: start, count: count))
        if reply.isError { throw Failure("SET_IRQS failed with error \(reply.error)") }
    }

    /// Makes the device raise a vector.
    func trigger(_ vector: UInt32) throws {
        try setIRQs(IRQSet.dataNone | IRQSet.trigger, start: vector, count: 1)
    }
}
