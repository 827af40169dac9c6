// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Capability registers and extended capabilities (xHCI 5.3, 7).
struct CapabilityRegisterTests {
    let machine: SimulatedMachine
    let registers: GuestRegisters

    init() throws {
        machine = try SimulatedMachine()
        registers = GuestRegisters(machine)
    }

    @Test func `CAPLENGTH and HCIVERSION share the first doubleword`() {
        let word = machine.read32(0)
        #expect(word >> 16 == 0x0110)
        #expect(word & 0xff >= 0x20)
        #expect(word & 3 == 0)
        #expect(machine.read(UInt8.self, at: 0) == UInt8(word & 0xff))
        #expect(machine.read(UInt16.self, at: 2) == 0x0110)
    }

    @Test func `every width reads the same bytes`() {
        for offset in 0..<Controller.registerSpaceSize {
            // The controller is halted, so MFINDEX does not change between the reads.
            let bytes = machine.readRegister(at: offset, count: 1)
            #expect(machine.readRegister(at: offset & ~1, count: 2)[offset & 1] == bytes[0])
            #expect(machine.readRegister(at: offset & ~3, count: 4)[offset & 3] == bytes[0])
            #expect(machine.readRegister(at: offset & ~7, count: 8)[offset & 7] == bytes[0])
        }
    }

    @Test func `the whole space can be read at once`() {
        let all = machine.readRegister(at: 0, count: Controller.registerSpaceSize)
        for offset in stride(from: 0, to: all.count, by: 4) {
            #expect(machine.readRegister(at: offset, count: 4) == Array(all[offset..<offset + 4]))
        }
    }

    @Test(arguments: [(1, 1, 0, 1), (64, 8, 8, 8), (255, 15, 15, 16), (8, 0, 1, 2)])
    func `MaxSlots, MaxPorts and MaxIntrs are those of the configuration`(
        slots: Int, usb2: Int, usb3: Int, interrupters: Int
    ) throws {
        var capabilities = Capabilities()
        capabilities.slots = slots
        capabilities.usb2Ports = usb2
        capabilities.usb3Ports = usb3
        capabilities.interrupters = interrupters
        let registers = GuestRegisters(try SimulatedMachine(capabilities: capabilities))
        #expect(registers.slots == slots)
        #expect(registers.ports == usb2 + usb3)
        #expect(registers.interrupters == interrupters)
    }

    @Test func `AC64 is set`() { #expect(registers.capability1 & 1 == 1) }

    @Test func `ERST Max is that of the configuration`() throws {
        for log2 in [0, 1, 4, 15] {
            var capabilities = Capabilities()
            capabilities.eventRingSegmentsLog2 = log2
            let registers = GuestRegisters(try SimulatedMachine(capabilities: capabilities))
            #expect(registers.structural2 >> 4 & 0xf == UInt32(log2))
        }
    }

    @Test func `the register sets do not overlap and fit into BAR 0`() {
        let portsEnd = registers.port(registers.ports) + 0x10
        let runtimeEnd = registers.interrupter(registers.interrupters)
        let doorbellsEnd = registers.doorbells + (registers.slots + 1) * 4
        let sets = [
            (0, Int(registers.operational)), (registers.operational, portsEnd),
            (registers.runtime, runtimeEnd), (registers.doorbells, doorbellsEnd),
        ].sorted { $0.0 < $1.0 }
        for (before, after) in zip(sets, sets.dropFirst()) { #expect(before.1 <= after.0) }
        #expect(sets.allSatisfy { $0.1 <= Controller.registerSpaceSize })
        #expect(registers.runtime & 0x1f == 0)
        #expect(registers.doorbells & 3 == 0)
    }

    @Test func `no scratchpad buffers are requested`() {
        #expect(registers.structural2 >> 27 == 0)
        #expect(registers.structural2 >> 21 & 0x1f == 0)
    }

    @Test func `the capability registers ignore writes`() {
        for offset in 0..<registers.operational {
            let before = machine.readRegister(at: 0, count: registers.operational)
            machine.writeRegister(at: offset, [0xff])
            #expect(machine.readRegister(at: 0, count: registers.operational) == before)
        }
    }

    /// The offsets of the extended capabilities.
    private var extendedCapabilities: [Int] {
        var offsets: [Int] = []
        var offset = Int(registers.capability1 >> 16) * 4
        while offset != 0, offsets.count < 32, offset < Controller.registerSpaceSize {
            offsets.append(offset)
            let next = Int(machine.read32(offset) >> 8 & 0xff) * 4
            offset = next == 0 ? 0 : offset + next
        }
        return offsets
    }

    @Test func `Supported Protocol capabilities cover each port once, with its speeds`() {
        var majors = [UInt32?](repeating: nil, count: registers.ports + 1)
        for offset in extendedCapabilities where machine.read32(offset) & 0xff == 2 {
            #expect(machine.read32(offset + 4) == 0x2042_5355, "the name is 'USB '")
            let word = machine.read32(offset + 8)
            let first = Int(word & 0xff)
            let count = Int(word >> 8 & 0xff)
            #expect(first >= 1 && count >= 1 && first + count - 1 <= registers.ports)
            for port in first..<first + count where port < majors.count {
                #expect(majors[port] == nil, "port \(port) is in two protocols")
                majors[port] = machine.read32(offset) >> 24
            }
            // A Protocol Speed ID has the value that PORTSC reports as Port Speed.
            for number in 0..<Int(word >> 28) {
                let identifier = machine.read32(offset + 0x10 + number * 4) & 0xf
                #expect((1...5).contains(identifier))
            }
        }
        #expect(majors[1...8].allSatisfy { $0 == 2 })
        #expect(majors[9...16].allSatisfy { $0 == 3 })
    }

    @Test func `the list of extended capabilities ends`() {
        #expect(!extendedCapabilities.isEmpty)
        #expect(extendedCapabilities.count < 32)
    }
}
