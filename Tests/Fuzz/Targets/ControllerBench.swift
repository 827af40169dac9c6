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

/// A controller with devices, and a guest whose memory and registers are controlled by the input.
///
/// The memory that is mapped lies between two guards that are not mapped.
final class ControllerBench {
    /// The attached devices and the state of their driver.
    enum Setup: CaseIterable {
        case unaddressed, faulty, streams, stick, both, loopback
    }

    private static let memorySize = 1 << 20
    private static let guardSize = 16 << 10
    private static let guardByte: UInt8 = 0x5a
    /// The most memory accesses of one service pass; more are an endless loop.
    private static let mostAccesses = 100_000

    private let kind: SimulatedMachine.MemoryKind
    let machine: SimulatedMachine
    let driver: GuestDriver
    private(set) var slots: [GuestSlot] = []
    private(set) var endpoints: [GuestEndpoint] = []
    private(set) var streams: GuestStreams?
    /// The addresses of the structures that the controller reads.
    private(set) var structures: [GuestAddress] = []
    let data: GuestAddress
    private var devices: [WatchedDevice] = []
    private var stick: StorageBackend?
    private var loopback: LoopbackBackend?
    private var accesses = 0
    private var services = 0

    /// Whether the guest has done only what a driver may do, so that each transfer must end once.
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
        for part in Self.parts { try map(part) }
        try driver.start()
        try attachDevices(setup, seed: seed, faults: faults, rules: rules)
        findStructures()
        accesses = machine.remote.accessCount
    }

    /// The two mapped parts of the memory. The structures are in the first.
    private static let parts = [
        guardSize..<memorySize / 2, memorySize / 2..<memorySize - guardSize,
    ]

    private func map(_ part: Range<Int>) throws {
        let memory = machine.memory
        let count = UInt64(part.count)
        let start = memory.base + part.lowerBound
        switch kind {
        case .local:
            try machine.bus.map(
                memory.descriptor(), offset: UInt64(part.lowerBound), count: count, at: start,
                writable: true)
        case .remote: try machine.bus.mapRemote(count: count, at: start, writable: true)
        }
    }

    /// Unmaps all memory and maps the part with structures again, or all of it.
    func remapMemory(completely: Bool) throws {
        isHonest = false
        let memory = machine.memory
        for part in Self.parts {
            let start = memory.base + part.lowerBound
            let count = UInt64(part.count)
            guard let region = try? machine.bus.unmap(start, count: count) else { continue }
            machine.controller.endAccess(to: region)
        }
        try map(Self.parts[0])
        if completely { try map(Self.parts[1]) }
    }

    /// Resets the controller, as DEVICE_RESET does.
    func reset() {
        isHonest = false
        machine.controller.reset()
    }

    /// Signals remote wakeup, whether the device is suspended or not.
    func wake(_ index: Int) {
        if devices.indices.contains(index) { devices[index].wake() }
    }

    // MARK: - Devices

    private func attachDevices(_ setup: Setup, seed: UInt64, faults: Bool, rules: String) throws {
        var deviceFaults = faults ? FaultyDevice.Faults.all : .none
        if faults { deviceFaults.disconnect = 50 }
        func faulty(_ speed: USBSpeed) -> FaultyDevice {
            FaultyDevice(speed, seed: seed, faults: deviceFaults, loop: machine.loop)
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

    /// Attaches a backend's device and configures it. Steps that its faults make fail are skipped.
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

    /// Attaches the test device with the fault rules of the input.
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

    /// A bus that keeps a backend's device, which is then attached through a ``WatchedDevice``.
    private final class Bus: USBBus {
        var device: (any USBDevice)?
        func attach(_ device: any USBDevice) throws(AttachError) { self.device = device }
        func detach(_ device: any USBDevice) {}
    }

    /// Detaches a device, and attaches it again if `isIn` is set.
    func replug(_ index: Int, isIn: Bool) {
        guard devices.indices.contains(index) else { return }
        isHonest = false
        machine.detach(devices[index])
        if isIn { try? machine.attach(devices[index]) }
    }

    private func findStructures() {
        let memory = machine.memory
        structures = [driver.commandRing.start, driver.deviceContexts, data, data + 4096]
        for ring in driver.eventRings { structures += [ring.table, ring.segments[0].address] }
        for slot in slots {
            structures += [slot.inputContext, slot.deviceContext, slot.control.ring.start]
            endpoints.append(slot.control)
        }
        structures += endpoints.map(\.ring.start)
        if let streams {
            structures +=
                [streams.array]
                + streams.rings.keys.sorted().compactMap { streams.rings[$0]?.start }
        }
        // The end of the first part, and the end of the memory.
        structures.append(memory.base + (Self.memorySize / 2 - 64))
        structures.append(memory.base + (Self.memorySize - Self.guardSize - 64))
        pushed = endpoints.map { _ in 0 }
    }

    /// The nearest address in mapped memory with room for `count` bytes.
    func own(_ address: GuestAddress, count: Int) -> GuestAddress {
        let memory = machine.memory
        let first = memory.base.rawValue + UInt64(Self.guardSize)
        let last = memory.base.rawValue + UInt64(Self.memorySize - Self.guardSize - count)
        return GuestAddress(min(max(address.rawValue, first), last))
    }

    // MARK: - Transfers

    /// Puts a TD on an endpoint's ring. With `reporting` it ends in an Event Data TRB, which must
    /// produce one event.
    func push(_ index: Int, _ trbs: [GuestTRB], reporting: Bool) {
        guard endpoints.indices.contains(index) else { return }
        var trbs = trbs
        if reporting {
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
        try runStickUntilIdle()
        try check()
    }

    func pass(_ duration: Duration) throws {
        services = machine.serviceCount
        machine.pass(duration)
        try runStickUntilIdle()
        let most = Int(duration / .microseconds(125)) * 8 + 4000
        let count = machine.serviceCount - services
        try require(count <= most, "\(count) turns in \(duration)")
        accesses = machine.remote.accessCount
        try check()
    }

    private func runStickUntilIdle() throws {
        var rounds = 0
        while let stick, !stick.isIdle {
            _ = machine.loop.turn(wait: 100)
            rounds += 1
            try require(rounds < 1000, "the stick never becomes idle")
        }
    }

    private func check() throws {
        let count = machine.remote.accessCount - accesses
        accesses = machine.remote.accessCount
        try require(count <= Self.mostAccesses, "\(count) accesses in one turn")
        try require(!machine.isSpinning, "the controller asks for service at once, endlessly")
        for device in devices {
            if let violation = device.violation { throw Violation(violation) }
        }
        guard isHonest else { return }
        driver.collect()
        for event in driver.events where event.isTransfer && event.isEventData {
            // A stopped transfer resumes later.
            if [.stopped, .stoppedLengthInvalid, .stoppedShortPacket].contains(event.code) {
                continue
            }
            guard let count = cookies[event.parameter] else {
                throw Violation("an event of a transfer that was not submitted: \(event)")
            }
            try require(count == 0, "a transfer ends twice: \(event)")
            cookies[event.parameter] = 1
        }
        driver.discard { $0.isTransfer }
    }

    // MARK: - The end

    /// Checks that the controller runs again after a reset, and that no byte of the guards was
    /// written.
    func finish() throws {
        machine.remote.failingAccess = nil
        try require((try? driver.start()) != nil, "the controller does not start after a reset")
        let answer = try? driver.command(.command(.noOpCommand))
        try require(answer?.code == .success, "no command is answered after a reset")
        try runStickUntilIdle()
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
                "memory is written that is not mapped")
        }
    }
}
