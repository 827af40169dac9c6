// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Operational, runtime and doorbell registers: reset values, access widths, writable bits
/// (xHCI 5.4, 5.5, 5.6).
struct OperationalRegisterTests {
    let machine: SimulatedMachine
    let registers: GuestRegisters

    init() throws {
        machine = try SimulatedMachine()
        registers = GuestRegisters(machine)
    }

    private func expectResetValues() {
        #expect(machine.read32(registers.command) == 0)
        #expect(machine.read32(registers.status) & ~0x10 == 1, "halted, nothing pending")
        #expect(machine.read32(registers.pageSize) == 1)
        #expect(machine.read32(registers.notificationControl) == 0)
        #expect(machine.read64(registers.commandRing) == 0)
        #expect(machine.read64(registers.deviceContexts) == 0)
        #expect(machine.read32(registers.configure) == 0)
        for number in 0..<registers.interrupters {
            let base = registers.interrupter(number)
            #expect(machine.read32(base) == 0)
            #expect(machine.read32(base + 4) == 4000, "IMODI is 1 ms")
            #expect(machine.read32(base + 8) == 0)
            #expect(machine.read64(base + 16) == 0)
            #expect(machine.read64(base + 24) == 0)
        }
    }

    @Test func `registers have the specification's values after power-on`() { expectResetValues() }

    @Test func `HCRST restores the specification's values`() throws {
        let driver = GuestDriver(machine)
        try driver.start()
        machine.write32(0xffff, at: registers.notificationControl)
        try driver.reset()
        expectResetValues()
    }

    @Test func `a reset of the PCI device restores the specification's values`() throws {
        try GuestDriver(machine).start()
        machine.controller.reset()
        machine.turn()
        expectResetValues()
    }

    @Test func `HCRST is executed while the controller runs`() throws {
        try GuestDriver(machine).start()
        machine.write32(
            machine.read32(registers.command) | GuestDriver.Command.reset, at: registers.command)
        machine.pass(.milliseconds(10))
        expectResetValues()
    }

    @Test func `64-bit registers accept one write, or two halves in either order`() {
        let value: UInt64 = 0x0000_0012_3456_7fc0
        let offsets = [registers.deviceContexts, registers.interrupter(0) + 0x10]
        for offset in offsets {
            machine.write(value, at: offset)
            #expect(machine.read(UInt64.self, at: offset) == value)
            machine.write64(0, at: offset)
            #expect(machine.read64(offset) == 0)
            machine.write32(0x12, at: offset + 4)
            machine.write32(0x3456_7fc0, at: offset)
            #expect(machine.read64(offset) == value)
        }
    }

    @Test func `narrow writes change only their bytes`() {
        machine.write64(0x1122_3344_5566_7740, at: registers.deviceContexts)
        machine.writeRegister(at: registers.deviceContexts + 1, [0xaa])
        machine.writeRegister(at: registers.deviceContexts + 6, [0xbb, 0xcc])
        #expect(machine.read64(registers.deviceContexts) == 0xccbb_3344_5566_aa40)
    }

    @Test func `a write across a register boundary changes both registers`() {
        machine.writeRegister(
            at: registers.deviceContexts + 2, [0x34, 0x12, 0x78, 0x56])
        #expect(machine.read64(registers.deviceContexts) == 0x5678_1234_0000)
    }

    @Test func `reserved low bits of pointers read as zero`() {
        machine.write64(.max, at: registers.deviceContexts)
        #expect(machine.read64(registers.deviceContexts) == UInt64.max & ~0x3f)
        machine.write64(.max, at: registers.interrupter(0) + 0x10)
        #expect(machine.read64(registers.interrupter(0) + 0x10) == UInt64.max & ~0x3f)
    }

    @Test func `the Command Ring Pointer reads as zero`() {
        machine.write64(0x1_4000_0041, at: registers.commandRing)
        #expect(machine.read64(registers.commandRing) & ~0x8 == 0)
    }

    @Test func `ERDP reads back, without EHB`() {
        machine.write64(0x1_4000_0012 | 8, at: registers.interrupter(0) + 0x18)
        #expect(machine.read64(registers.interrupter(0) + 0x18) == 0x1_4000_0012)
    }

    @Test func `DNCTRL has 16 bits`() {
        for value: UInt32 in [0, 2, 0xffff, .max] {
            machine.write32(value, at: registers.notificationControl)
            #expect(machine.read32(registers.notificationControl) == value & 0xffff)
        }
    }

    @Test func `IMODI reads back`() {
        machine.write32(0x0000_00a0, at: registers.interrupter(2) + 4)
        #expect(machine.read32(registers.interrupter(2) + 4) & 0xffff == 0xa0)
        #expect(machine.read32(registers.interrupter(1) + 4) & 0xffff == 4000)
    }

    @Test func `doorbells read as zero`() throws {
        try GuestDriver(machine).start()
        for slot in 0...registers.slots {
            machine.write32(1, at: registers.doorbells + slot * 4)
            #expect(machine.read32(registers.doorbells + slot * 4) == 0)
        }
    }

    @Test func `HCH follows R/S`() throws {
        let driver = GuestDriver(machine)
        try driver.start()
        #expect(machine.read32(registers.status) & 1 == 0)
        try driver.halt()
        #expect(machine.read32(registers.status) & 1 == 1)
    }

    @Test func `USBSTS bits are cleared by writing one, except HCH`() throws {
        let guest = try Guest()
        guest.driver.ringDoorbell(slot: 0, target: 0)
        try guest.machine.attach(TestDevice())
        guest.machine.pass(.milliseconds(10))
        let raised = GuestDriver.Status.eventInterrupt | GuestDriver.Status.portChange
        #expect(guest.status & raised == raised)
        guest.machine.write32(0, at: guest.registers.status)
        #expect(guest.status & raised == raised)
        guest.machine.write32(GuestDriver.Status.portChange, at: guest.registers.status)
        #expect(guest.status & raised == GuestDriver.Status.eventInterrupt)
        guest.machine.write32(.max, at: guest.registers.status)
        #expect(guest.status & raised == 0)
        try guest.driver.halt()
        guest.machine.write32(.max, at: guest.registers.status)
        #expect(guest.status & 1 == 1)
    }

    @Test func `USBCMD keeps only implemented bits`() {
        machine.write32(0xffff_fff0, at: registers.command)
        // Bits 6:4 and 31:14 are reserved.
        #expect(machine.read32(registers.command) & 0xffff_c070 == 0)
    }

    @Test func `offsets outside and between registers read as zero and ignore writes`() {
        for offset in [
            registers.operational + 0x0c, registers.operational + 0x10,
            registers.operational + 0x20, registers.operational + 0x3c,
            registers.operational + 0x3fc, registers.port(registers.ports + 1),
            registers.interrupter(registers.interrupters),
            registers.doorbells + (registers.slots + 1) * 4, Controller.registerSpaceSize - 4,
        ] {
            machine.write32(.max, at: offset)
            #expect(machine.read32(offset) == 0, "offset \(offset)")
        }
        for offset in [Controller.registerSpaceSize, Int.max - 3, Int.max, -1, -4, Int.min] {
            machine.writeRegister(at: offset, [1, 2, 3, 4])
            #expect(machine.readRegister(at: offset, count: 4).count == 4)
        }
    }

    @Test func `an access across the end of register space reads the bytes inside it`() {
        let end = Controller.registerSpaceSize
        #expect(machine.readRegister(at: end - 2, count: 8) == [0, 0, 0, 0, 0, 0, 0, 0])
        machine.writeRegister(at: end - 2, [1, 2, 3, 4, 5, 6, 7, 8])
        #expect(machine.readRegister(at: -2, count: 4)[2] == machine.read(UInt8.self, at: 0))
    }

    @Test func `an empty access does nothing`() {
        machine.writeRegister(at: registers.command, [])
        #expect(machine.readRegister(at: registers.command, count: 0).isEmpty)
    }

    @Test(arguments: [0x5a, 0xff] as [UInt8], [1, 4, 8])
    func `the controller survives any write to any offset`(byte: UInt8, width: Int) throws {
        let guest = try Guest()
        _ = try guest.plug(TestDevice(), .bulkIn(1))
        for offset in 0..<Controller.registerSpaceSize + 8 {
            guest.machine.writeRegister(at: offset, Array(repeating: byte, count: width))
            if offset % 64 == 0 { guest.machine.turn() }
        }
        guest.machine.pass(.milliseconds(100))
        #expect(!guest.machine.isSpinning)
        try guest.driver.start()
        #expect(guest.answersCommands)
    }
}
