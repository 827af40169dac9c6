// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import USB
import XHCI

/// A guest that writes random values into registers and into its own rings, contexts and tables.
enum ControllerTarget: FuzzTarget {
    static let name = "controller"

    static func run(_ input: inout FuzzInput) throws {
        let setup = input.pick(ControllerBench.Setup.allCases)
        let kind: SimulatedMachine.MemoryKind = input.flag() ? .local : .remote
        let bench = try ControllerBench(
            setup, kind, seed: UInt64(input.byte()), faults: input.flag(),
            rules: setup == .loopback
                ? String(decoding: input.bytes(atMost: 80), as: UTF8.self) : "")
        while !input.isAtEnd { try step(&input, bench) }
        try bench.pass(.milliseconds(20))
        try bench.finish()
    }

    private static func step(_ input: inout FuzzInput, _ bench: ControllerBench) throws {
        switch input.byte() % 23 {
        case 0...3: transfer(&input, bench)
        case 4, 5: command(&input, bench)
        case 6: isolated(&input, bench)
        case 7: doorbell(&input, bench)
        case 8: try bench.pass(.microseconds(input.number(0...65_535)))
        case 9: control(&input, bench)
        case 10: stickCommand(&input, bench)
        case 11: storeTRB(&input, bench)
        case 12:
            bench.isHonest = false
            let target = bench.own(address(&input, bench), count: 8)
            bench.machine.memory.store(pointer(&input, bench), at: target)
        case 13:
            bench.isHonest = false
            let target = bench.own(address(&input, bench), count: 4)
            bench.machine.memory.store(input.integer(UInt32.self), at: target)
        case 14:
            bench.isHonest = false
            let count = input.number(0...2048)
            let target = bench.own(address(&input, bench), count: count)
            bench.machine.memory.fill(input.byte(), at: target, count: count)
        case 15, 16: register(&input, bench)
        case 17:
            bench.isHonest = false
            bench.machine.writeRegister(
                at: input.number(0...Controller.registerSpaceSize + 8),
                [input.byte(), input.byte(), input.byte(), input.byte()]
                    + (input.flag() ? [0, 0, 0, 0] : []))
        case 18:
            bench.isHonest = false
            bench.machine.remote.failingAccess =
                bench.machine.remote.accessCount + input.number(1...200)
        case 19: bench.replug(input.number(0...1), isIn: input.flag())
        case 20: try bench.remapMemory(completely: input.flag())
        case 21: bench.reset()
        default: bench.wake(input.number(0...1))
        }
        try bench.turn()
    }

    // MARK: - Numbers

    private static func address(
        _ input: inout FuzzInput, _ bench: ControllerBench
    ) -> GuestAddress {
        input.pick(bench.structures) + input.number(0...255) * 4
    }

    /// A value for a field that holds an address.
    private static func pointer(_ input: inout FuzzInput, _ bench: ControllerBench) -> UInt64 {
        let kind = input.byte()
        switch kind & 7 {
        case 0: return input.edge()
        case 1: return bench.data.rawValue + UInt64(input.integer(UInt16.self))
        case 2: return input.integer()
        default:
            let address = input.pick(bench.structures).rawValue
            return address &+ UInt64(kind >> 4) &* 16 &+ UInt64(kind >> 3 & 1)
        }
    }

    // MARK: - Valid input

    /// Submits a TD of one to four TRBs.
    private static func transfer(_ input: inout FuzzInput, _ bench: ControllerBench) {
        let options = input.byte()
        let kind: GuestTRB.Kind = options & 1 != 0 ? .isochronous : .normal
        var trbs: [GuestTRB] = []
        for index in 0...Int(options >> 1 & 3) {
            let flags = UInt32(input.byte()) << 1 & 0x74
            var trb = GuestTRB(
                index == 0 ? kind : .normal,
                parameter: pointer(&input, bench), status: UInt32(input.integer(UInt16.self)),
                control: flags)
            if kind == .isochronous, index == 0 {
                trb.control |= UInt32(input.integer(UInt16.self)) << 16
            }
            trbs.append(trb)
        }
        if let streams = bench.streams, options & 8 != 0 {
            bench.isHonest = false
            streams.submit(input.number(0...9), trbs)
        } else {
            bench.push(input.number(0...7), trbs, reporting: options & 16 == 0)
        }
    }

    /// Submits a control transfer, which may lack stages.
    private static func control(_ input: inout FuzzInput, _ bench: ControllerBench) {
        bench.isHonest = false
        guard let slot = bench.slots.first else { return }
        let setup = SetupPacket(wire: input.integer())
        let options = input.byte()
        var trbs: [GuestTRB] = []
        if options & 1 == 0 {
            trbs.append(.setup(setup, transferType: UInt32(options >> 4 & 3)))
        }
        if options & 2 == 0 {
            trbs.append(
                .data(bench.data, Int(input.integer(UInt16.self)), options & 4 != 0 ? .in : .out))
        }
        if options & 8 == 0 { trbs.append(.status(.in, .interruptOnCompletion)) }
        if !trbs.isEmpty { slot.control.submit(trbs) }
    }

    /// Submits a command with random fields.
    private static func command(_ input: inout FuzzInput, _ bench: ControllerBench) {
        bench.isHonest = false
        let kind = GuestTRB.Kind(rawValue: UInt8(input.number(9...24)))
        push(
            GuestTRB(
                kind, parameter: pointer(&input, bench), status: input.integer(),
                control: UInt32(input.byte() & 2) << 8 | UInt32(input.byte()) << 16
                    | UInt32(input.byte() % 5) << 24), bench)
    }

    /// Submits a command that does not move a ring's dequeue pointer.
    private static func isolated(_ input: inout FuzzInput, _ bench: ControllerBench) {
        let kind: GuestTRB.Kind = input.pick([.stopEndpoint, .resetEndpoint, .noOpCommand])
        let endpoint = bench.endpoints.isEmpty ? nil : input.pick(bench.endpoints)
        push(
            .command(kind, slot: endpoint?.slot ?? 1, endpoint: endpoint?.contextIndex ?? 1), bench)
    }

    private static func push(_ trb: GuestTRB, _ bench: ControllerBench) {
        bench.driver.commandRing.push(trb)
        bench.driver.ringDoorbell(slot: 0, target: 0)
    }

    private static func doorbell(_ input: inout FuzzInput, _ bench: ControllerBench) {
        let slot = input.number(0...4)
        let target = input.number(0...255)
        bench.driver.ringDoorbell(slot: slot, target: target, stream: Int(input.byte()))
    }

    /// Submits a CBW, data and a CSW to the stick, if there is one.
    private static func stickCommand(_ input: inout FuzzInput, _ bench: ControllerBench) {
        guard bench.endpoints.count >= 2 else { return }
        let isIn = input.flag()
        let length = input.number(0...8192)
        let block = input.bytes(atMost: 15) + [0]
        let memory = bench.machine.memory
        memory.write(
            MassStorageHost.wrapper(block, length: length, isIn ? .in : .out, tag: 1),
            at: bench.data)
        let data = GuestTRB.normal(bench.data + 4096, length)
        bench.push(1, [.normal(bench.data, 31)], reporting: true)
        if length > 0 { bench.push(isIn ? 0 : 1, [data], reporting: true) }
        bench.push(0, [.normal(bench.data + 64, 13)], reporting: true)
    }

    // MARK: - Invalid input

    private static func storeTRB(_ input: inout FuzzInput, _ bench: ControllerBench) {
        bench.isHonest = false
        let target = bench.own(input.pick(bench.structures) + input.number(0...63) * 16, count: 16)
        let memory = bench.machine.memory
        memory.store(pointer(&input, bench), at: target)
        memory.store(input.integer(UInt32.self), at: target + 8)
        let kind = UInt32(input.number(0...40))
        memory.store(
            UInt32(input.integer(UInt16.self)) << 16
                | kind << 10 | UInt32(input.integer(UInt16.self)) & 0x3ff, at: target + 12)
    }

    private static func register(_ input: inout FuzzInput, _ bench: ControllerBench) {
        bench.isHonest = false
        let registers = bench.driver.registers
        let machine = bench.machine
        switch input.byte() % 8 {
        case 0: machine.write32(input.integer(), at: registers.command)
        case 1: machine.write32(input.integer(), at: registers.status)
        case 2:
            machine.write64(
                pointer(&input, bench) | UInt64(input.byte() & 0xf), at: registers.commandRing)
        case 3: machine.write64(pointer(&input, bench), at: registers.deviceContexts)
        case 4:
            machine.write32(input.integer(), at: registers.port(input.number(1...registers.ports)))
        case 5:
            let interrupter = registers.interrupter(input.number(0...registers.interrupters - 1))
            machine.write32(
                UInt32(input.integer(UInt16.self)), at: interrupter + input.number(0...2) * 4)
        case 6:
            let interrupter = registers.interrupter(input.number(0...registers.interrupters - 1))
            machine.write64(pointer(&input, bench), at: interrupter + (input.flag() ? 16 : 24))
        default:
            let port = registers.port(input.number(1...registers.ports))
            let bits: [UInt32] = [
                1 << 4, 1 << 9, 0, 1 << 31, 1 << 1, 3 << 5 | 1 << 16, 1 << 16, 15 << 5 | 1 << 16,
            ]
            machine.write32(input.pick(bits) | 0x200, at: port)
        }
    }
}
