// SPDX-License-Identifier: Apache-2.0

import BackendKit
import DMA
import GuestKit
import Logging
import Loopback
import MassStorage
import TestKit
import USB
import XHCI

/// A controller with devices, and a guest whose memory and registers the input has in its hands.
///
/// The memory that the controller is given lies between two guards that it is not given.
final class ControllerBench {
    /// What is plugged in and how far its driver has come.
    enum Setup: CaseIterable {
        case unaddressed, faulty, streams, stick, both, loopback
    }

    private static let memorySize = 1 << 20
    private static let guardSize = 16 << 10
    private static let guardByte: UInt8 = 0x5a
    /// Accesses to memory in one turn: beyond it the controller does not know when to stop.
    private static let mostAccesses = 100_000

    private let kind: SimulatedMachine.MemoryKind
    let machine: SimulatedMachine
    let driver: GuestDriver
    private(set) var slots: [GuestSlot] = []
    private(set) var endpoints: [GuestEndpoint] = []
    private(set) var streams: GuestStreams?
    /// Where structures are that the controller looks at.
    private(set) var places: [GuestAddress] = []
    let data: GuestAddress
    private var devices: [WatchedDevice] = []
    private var stick: StorageBackend?
    private var loopback: LoopbackBackend?
    private var accesses = 0
    private var services = 0

    /// All that the guest does is what a driver may do: then each transfer ends once.
    var isHonest = true
    private var cookies: [UInt64: Int] = [:]
    private var pushed: [Int] = []

    init(
        _ setup: Setup, _ kind: SimulatedMachine.MemoryKind, seed: UInt64, faults: Bool,
        rules: String
    ) throws {
        let memory = try GuestRAM(size: Self.memorySize)
        self.kind = kind
        let front = memory.allocate(Self.guardSize - 64, alignment: 64)
        machine = try SimulatedMachine(kind, memory: memory)
        memory.fill(Self.guardByte, at: memory.base, count: Self.guardSize)
        memory.fill(
            Self.guardByte, at: memory.base + (Self.memorySize - Self.guardSize),
            count: Self.guardSize)
        try require(front > memory.base, "the guard is not at the front")
        driver = GuestDriver(machine)
        data = memory.allocate(64 << 10, alignment: 4096)
        _ = try machine.bus.unmap(memory.base, count: UInt64(memory.size))
        for piece in Self.pieces { try give(piece) }
        try driver.start()
        try plugIn(setup, seed: seed, faults: faults, rules: rules)
        findPlaces()
        accesses = machine.remote.accessCount
    }

    /// The memory between the guards, in two pieces. Structures are in the first.
    private static let pieces = [
        guardSize..<memorySize / 2, memorySize / 2..<memorySize - guardSize,
    ]

    private func give(_ piece: Range<Int>) throws {
        let memory = machine.memory
        let count = UInt64(piece.count)
        let start = memory.base + piece.lowerBound
        switch kind {
        case .local:
            try machine.bus.map(
                memory.descriptor(), offset: UInt64(piece.lowerBound), count: count, at: start,
                writable: true)
        case .remote: try machine.bus.mapRemote(count: count, at: start, writable: true)
        }
    }

    /// The client takes all memory away and gives it back at once, or only the piece with structures.
    func takeMemory(givingBack: Bool) throws {
        isHonest = false
        let memory = machine.memory
        for piece in Self.pieces {
            let start = memory.base + piece.lowerBound
            let count = UInt64(piece.count)
            guard let region = try? machine.bus.unmap(start, count: count) else { continue }
            machine.controller.endAccess(to: region)
        }
        try give(Self.pieces[0])
        if givingBack { try give(Self.pieces[1]) }
    }

    /// The client resets the device.
    func reset() {
        isHonest = false
        machine.controller.reset()
    }

    /// A device wants to be woken, whether it sleeps or not.
    func wake(_ index: Int) {
        if devices.indices.contains(index) { devices[index].wake() }
    }

    // MARK: - Devices

    private func plugIn(_ setup: Setup, seed: UInt64, faults: Bool, rules: String) throws {
        var behaviour = faults ? FaultyDevice.Faults.all : .none
        if faults { behaviour.disconnect = 50 }
        func faulty(_ speed: USBSpeed) -> FaultyDevice {
            FaultyDevice(speed, seed: seed, faults: behaviour, loop: machine.loop)
        }
        switch setup {
        case .unaddressed: try attach(faulty(.high))
        case .faulty: try addFaulty(faulty(.high))
        case .streams:
            try attach(faulty(.superSpeed))
            guard let slot = try? driver.addressNewDevice() else { return }
            slots.append(slot)
            streams = try? GuestStreams(slot, EndpointAddress(1, .in), maxPrimaryStreams: 2)
        case .stick: try addStick()
        case .both:
            try addStick()
            try addFaulty(faulty(.full))
        case .loopback: try addLoopback(rules)
        }
    }

    private func attach(_ device: any USBDevice) throws {
        let watched = WatchedDevice(device)
        devices.append(watched)
        try machine.attach(watched)
    }

    private func addFaulty(_ device: FaultyDevice) throws {
        try attach(device)
        guard let slot = try? driver.addressNewDevice() else { return }
        slots.append(slot)
        let wanted: [GuestEndpointConfiguration] = [
            .bulkIn(1), .bulkOut(1), .interruptIn(2),
            .isochronous(3, .in, interval: 3), .isochronous(3, .out, interval: 3),
        ]
        endpoints += (try? slot.configure(wanted)) ?? []
    }

    private func addStick() throws {
        let file = try ScratchFile(size: 64 << 10)
        let backend = try StorageBackend(
            DeviceSpecification(parsing: "storage:file=\(file.path)"),
            context: context)
        stick = backend
        try plug(backend, [.bulkIn(1), .bulkOut(2)], configuration: 1)
    }

    /// Plugs a backend's device in, and configures it as far as it lets.
    @discardableResult
    private func plug(
        _ backend: some DeviceBackend, _ wanted: [GuestEndpointConfiguration],
        configuration: UInt16
    ) throws -> GuestSlot? {
        let bus = Bus()
        try backend.start(on: bus)
        guard let device = bus.device else { return nil }
        try attach(device)
        guard let slot = try? driver.addressNewDevice() else { return nil }
        slots.append(slot)
        endpoints += (try? slot.configure(wanted)) ?? []
        try? slot.setConfiguration(configuration)
        return slot
    }

    /// The test device, with the faults that the input has thought of.
    private func addLoopback(_ rules: String) throws {
        let backend = try LoopbackBackend(
            DeviceSpecification(parsing: "loopback:speed=high"), context: context)
        loopback = backend
        do {
            try backend.replaceFaults(rules)
        } catch {
            try require(!error.reason.isEmpty, "rules are refused without a reason")
        }
        let slot = try plug(
            backend,
            [
                .bulkIn(1), .bulkOut(2), .interruptIn(3), .isochronous(5, .in, interval: 3),
                .isochronous(6, .out, interval: 3),
            ],
            configuration: 3)
        try? slot?.setAlternateSetting(1)
    }

    private var context: BackendContext {
        BackendContext(
            loop: machine.loop,
            logger: .silent)
    }

    /// Takes a backend's device, so that a watched one can be plugged in.
    private final class Bus: USBBus {
        var device: (any USBDevice)?
        func attach(_ device: any USBDevice) throws(AttachError) { self.device = device }
        func detach(_ device: any USBDevice) {}
    }

    /// Plugs a device out, or in again.
    func replug(_ index: Int, isIn: Bool) {
        guard devices.indices.contains(index) else { return }
        isHonest = false
        machine.detach(devices[index])
        if isIn { try? machine.attach(devices[index]) }
    }

    private func findPlaces() {
        let memory = machine.memory
        places = [driver.commandRing.start, driver.deviceContexts, data, data + 4096]
        for ring in driver.eventRings { places += [ring.table, ring.segments[0].address] }
        for slot in slots {
            places += [slot.inputContext, slot.deviceContext, slot.control.ring.start]
            endpoints.append(slot.control)
        }
        places += endpoints.map(\.ring.start)
        if let streams {
            places +=
                [streams.array]
                + streams.rings.keys.sorted().compactMap { streams.rings[$0]?.start }
        }
        // Where the two pieces meet, and where the memory ends.
        places.append(memory.base + (Self.memorySize / 2 - 64))
        places.append(memory.base + (Self.memorySize - Self.guardSize - 64))
        pushed = endpoints.map { _ in 0 }
    }

    /// An address of the guest's own memory with room for `count` bytes.
    func own(_ address: GuestAddress, count: Int) -> GuestAddress {
        let memory = machine.memory
        let first = memory.base.rawValue + UInt64(Self.guardSize)
        let last = memory.base.rawValue + UInt64(Self.memorySize - Self.guardSize - count)
        return GuestAddress(min(max(address.rawValue, first), last))
    }

    // MARK: - Transfers

    /// Puts a TD on an endpoint's ring. One that tells of its end by an Event Data TRB must tell once.
    func push(_ index: Int, _ trbs: [GuestTRB], telling: Bool) {
        guard endpoints.indices.contains(index) else { return }
        var trbs = trbs
        if telling {
            let cookie = 0xf022_0000_0000_0000 | UInt64(cookies.count)
            cookies[cookie] = 0
            trbs = trbs.map { $0.adding(.chain) } + [.eventData(cookie, .interruptOnCompletion)]
        }
        pushed[index] += trbs.count
        if pushed[index] >= endpoints[index].ring.capacity { isHonest = false }
        endpoints[index].ring.push(trbs)
        endpoints[index].ringDoorbell()
    }

    // MARK: - Time

    func turn() throws {
        machine.turn()
        try settleStick()
        try check()
    }

    func pass(_ duration: Duration) throws {
        services = machine.serviceCount
        machine.pass(duration)
        try settleStick()
        let most = Int(duration / .microseconds(125)) * 8 + 4000
        let count = machine.serviceCount - services
        try require(count <= most, "\(count) turns in \(duration)")
        accesses = machine.remote.accessCount
        try check()
    }

    private func settleStick() throws {
        var rounds = 0
        while let stick, !stick.isIdle {
            _ = machine.loop.turn(wait: 100)
            rounds += 1
            try require(rounds < 1000, "the stick does not come to an end")
        }
    }

    private func check() throws {
        let count = machine.remote.accessCount - accesses
        accesses = machine.remote.accessCount
        try require(count <= Self.mostAccesses, "\(count) accesses in one turn")
        try require(!machine.isSpinning, "the controller wants to work at once, for ever")
        for device in devices {
            if let violation = device.violation { throw Violation(violation) }
        }
        guard isHonest else { return }
        driver.collect()
        for event in driver.events where event.isTransfer && event.isEventData {
            // A stop tells of a transfer that goes on afterwards.
            if [.stopped, .stoppedLengthInvalid, .stoppedShortPacket].contains(event.code) {
                continue
            }
            guard let count = cookies[event.parameter] else {
                throw Violation("the end of a transfer that was not begun: \(event)")
            }
            try require(count == 0, "a transfer ends twice: \(event)")
            cookies[event.parameter] = 1
        }
        driver.discard { $0.isTransfer }
    }

    // MARK: - The end

    /// Whatever a guest did, a reset brings the controller back, and no byte is written that was not
    /// the guest's to give.
    func finish() throws {
        machine.remote.failingAccess = nil
        try require((try? driver.start()) != nil, "a reset does not bring the controller back")
        let answer = try? driver.command(.command(.noOpCommand))
        try require(answer?.code == .success, "no command is answered after a reset")
        try settleStick()
        for device in devices { machine.detach(device) }
        machine.turn()
        for device in devices {
            if let violation = device.violation { throw Violation(violation) }
        }
        try? stick?.stop()
        loopback?.stop()
        let memory = machine.memory
        for start in [0, Self.memorySize - Self.guardSize] {
            let bytes = memory.bytes(at: memory.base + start, count: Self.guardSize)
            try require(
                bytes.allSatisfy { $0 == Self.guardByte },
                "memory is written that the controller was not given")
        }
    }
}
