// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import TestKit
import Testing
import USB
import XHCI

/// A guest that writes random values to random addresses. When the controller has halted or failed,
/// a driver initializes it again, so that further writes have an effect.
private final class HostileGuest {
    private let guest: Guest
    private var random: SplitMix64
    private let seed: UInt64
    private var devices: [FaultyDevice] = []
    /// The ranges of memory with structures that the controller reads.
    private let ringsOfDriver: Range<Int>
    private var ringsOfDevices: Range<Int>
    private var setups = 0
    /// The highest number of memory accesses in one service pass.
    private(set) var mostAccesses = 0

    init(seed: UInt64) throws {
        self.seed = seed
        random = SplitMix64(seed: seed)
        guest = try Guest(.remote)
        ringsOfDriver = 0..<Self.used(guest)
        ringsOfDevices = ringsOfDriver
        setUp()
    }

    var isSpinning: Bool { guest.machine.isSpinning }

    private static func used(_ guest: Guest) -> Int {
        Int(guest.memory.allocate(64).rawValue - guest.memory.base.rawValue)
    }

    /// Attaches two devices with endpoints of all types. Failed steps are skipped.
    private func setUp() {
        setups += 1
        for device in devices { guest.machine.detach(device) }
        devices = []
        guard (try? guest.driver.start()) != nil else { return }
        let start = ringsOfDevices.upperBound
        for speed in [USBSpeed.high, .superSpeed] {
            let device = FaultyDevice(
                speed, seed: seed &+ UInt64(setups), faults: .none, loop: guest.machine.loop)
            guard (try? guest.machine.attach(device)) != nil else { continue }
            devices.append(device)
            if let slot = try? guest.driver.addressNewDevice() {
                _ = try? slot.configure(
                    .bulkIn(1), .bulkOut(1), .interruptIn(2), .isochronous(3, .in))
                if speed == .superSpeed { addStreams(slot) }
            }
            device.faults = .all
            device.faults.disconnect = 50
        }
        ringsOfDevices = start..<Self.used(guest)
    }

    private func addStreams(_ slot: GuestSlot) {
        _ = try? GuestStreams(slot, EndpointAddress(2, .out), maxPrimaryStreams: 3)
        _ = try? GuestStreams(
            slot, EndpointAddress(4, .in), maxPrimaryStreams: 1, layout: .secondary(rings: [2]))
    }

    func step() {
        for _ in 0..<random.number(0...6) { scribble() }
        poke()
        let machine = guest.machine
        let before = machine.remote.accessCount
        machine.turn()
        mostAccesses = max(mostAccesses, machine.remote.accessCount - before)
        if random.oneIn(10) { machine.pass(.microseconds(Int64(random.number(1...5000)))) }
        let isHalted = guest.status & GuestDriver.Status.halted != 0
        if setups < 12, isHalted || guest.hasFailed, random.oneIn(10) { setUp() }
    }

    /// Whether the controller works after a reset.
    func recovers() -> Bool { (try? guest.driver.start()) != nil && guest.answersCommands }

    /// Writes nearly valid structures to guest memory: TRBs, contexts and tables with pointers into
    /// memory, and random values.
    private func scribble() {
        let memory = guest.memory
        let area = random.oneIn(3) ? ringsOfDriver : ringsOfDevices
        let address =
            memory.base + random.number(area.lowerBound / 16...area.upperBound / 16 - 1) * 16
        let used = ringsOfDevices.upperBound
        switch random.number(0...5) {
        case 0: memory.store(random.next(), at: address)
        case 1: memory.fill(0xff, at: address, count: 64)
        case 2: memory.fill(0, at: address, count: 256)
        case 3:
            memory.store(
                memory.base.rawValue + UInt64(random.number(0...used - 1)) & ~0xf, at: address)
        default:
            let trb = GuestTRB(
                GuestTRB.Kind(rawValue: UInt8(random.number(1...25))),
                parameter: memory.base.rawValue + UInt64(random.number(0...used - 1)),
                status: UInt32(random.number(0...0x1ffff)),
                control: UInt32(truncatingIfNeeded: random.next()) & 0x0101_03ff
                    | UInt32(random.number(0...5)) << 16)
            memory.store(trb.parameter, at: address)
            memory.store(trb.status, at: address + 8)
            memory.store(trb.control, at: address + 12)
        }
    }

    private func poke() {
        let registers = guest.registers
        let machine = guest.machine
        let memory = guest.memory.base.rawValue
        switch random.number(0...13) {
        case 0...3:
            guest.driver.ringDoorbell(slot: random.number(0...4), target: random.number(0...31))
        case 4...6:
            guest.driver.ringDoorbell(
                slot: random.number(0...4), target: random.number(2...7),
                stream: random.number(0...20))
        case 7:
            machine.write32(
                UInt32(truncatingIfNeeded: random.next()),
                at: registers.port(random.number(1...registers.ports)))
        case 8:
            let offset = random.pick([
                registers.commandRing, registers.deviceContexts, registers.interrupter(0) + 16,
                registers.interrupter(0) + 24,
            ])
            machine.write64(memory + UInt64(random.number(0...0xffff)) & ~0x3f | 1, at: offset)
        case 9: machine.write32(random.pick([1, 5, 5, 5, 5, 5, 5, 0, 2]), at: registers.command)
        case 10: machine.write64(random.pick([2, 4]), at: registers.commandRing)
        default:
            machine.writeRegister(
                at: random.number(0...Controller.registerSpaceSize),
                random.bytes(random.pick([1, 2, 4, 8])))
        }
    }
}

struct HostileGuestTests {
    /// Goal: no trap, bounded work in a service pass, and a controller that works after a reset.
    @Test func `no write of a guest is fatal`() throws {
        for seed in SimulationSeeds.drawn(fixed: 12) {
            let guest = try HostileGuest(seed: seed)
            for _ in 0..<600 { guest.step() }
            #expect(!guest.isSpinning, "SEED=\(seed)")
            #expect(
                guest.mostAccesses < 100_000,
                "SEED=\(seed): \(guest.mostAccesses) accesses in one service pass")
            #expect(guest.recovers(), "SEED=\(seed): the controller does not work after a reset")
        }
    }
}
