// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// A guest that writes anything anywhere: the controller must not trap, must not work without bound,
/// and must come back with a reset.
struct HostileGuestTests {
    /// Writes to guest memory that nearly make sense: TRBs, contexts, tables with pointers into
    /// memory, and noise.
    private static func scribble(
        _ random: inout SplitMix64, _ memory: GuestRAM, used: Int
    ) {
        let place = memory.base + random.number(0...used / 16 - 1) * 16
        switch random.number(0...5) {
        case 0: memory.store(random.next(), at: place)
        case 1: memory.fill(0xff, at: place, count: 64)
        case 2: memory.fill(0, at: place, count: 256)
        case 3:
            memory.store(
                memory.base.rawValue + UInt64(random.number(0...used - 1)) & ~0xf, at: place)
        default:
            let trb = GuestTRB(
                GuestTRB.Kind(rawValue: UInt8(random.number(1...25))),
                parameter: memory.base.rawValue + UInt64(random.number(0...used - 1)),
                status: UInt32(random.number(0...0x1ffff)),
                control: UInt32(truncatingIfNeeded: random.next()) & 0x0101_03ff
                    | UInt32(random.number(0...5)) << 16)
            memory.store(trb.parameter, at: place)
            memory.store(trb.status, at: place + 8)
            memory.store(trb.control, at: place + 12)
        }
    }

    private static func poke(_ random: inout SplitMix64, _ guest: Guest) {
        let registers = guest.registers
        let machine = guest.machine
        let memory = guest.memory.base.rawValue
        switch random.number(0...11) {
        case 0...4:
            guest.driver.ringDoorbell(slot: random.number(0...4), target: random.number(0...31))
        case 5:
            machine.write32(
                UInt32(truncatingIfNeeded: random.next()),
                at: registers.port(random.number(1...registers.ports)))
        case 6:
            let offset = random.pick([
                registers.commandRing, registers.deviceContexts, registers.interrupter(0) + 16,
                registers.interrupter(0) + 24,
            ])
            machine.write64(memory + UInt64(random.number(0...0xffff)) & ~0x3f | 1, at: offset)
        case 7: machine.write32(random.pick([1, 5, 5, 5, 0, 2]), at: registers.command)
        case 8: machine.write64(random.pick([2, 4]), at: registers.commandRing)
        default:
            machine.writeRegister(
                at: random.number(0...Controller.registerSpaceSize),
                random.bytes(random.pick([1, 2, 4, 8])))
        }
    }

    @Test func `nothing that a guest writes is fatal`() throws {
        for seed in SimulationSeeds.drawn(fixed: 12) {
            var random = SplitMix64(seed: seed)
            let guest = try Guest(.remote)
            let machine = guest.machine
            for speed in [USBSpeed.high, .superSpeed] {
                var faults = FaultyDevice.Faults.all
                faults.disconnect = 50
                let device = FaultyDevice(speed, seed: seed, faults: faults, loop: machine.loop)
                try machine.attach(device)
                guard let slot = try? guest.driver.addressNewDevice() else { continue }
                _ = try? slot.configure(.bulkIn(1), .bulkOut(1), .interruptIn(2))
            }
            let used = Int(guest.memory.allocate(64).rawValue - guest.memory.base.rawValue)
            var worst = 0
            for _ in 0..<600 {
                for _ in 0..<random.number(0...6) {
                    Self.scribble(&random, guest.memory, used: used)
                }
                Self.poke(&random, guest)
                let before = machine.remote.accessCount
                machine.turn()
                worst = max(worst, machine.remote.accessCount - before)
                if random.oneIn(10) { machine.pass(.microseconds(Int64(random.number(1...5000)))) }
            }
            #expect(!machine.isSpinning, "SEED=\(seed)")
            #expect(worst < 100_000, "SEED=\(seed): one turn made \(worst) accesses")
            guard (try? guest.driver.start()) != nil, guest.answersCommands else {
                Issue.record("SEED=\(seed): a reset did not bring the controller back")
                continue
            }
        }
    }
}
