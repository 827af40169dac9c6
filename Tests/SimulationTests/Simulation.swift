// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import TestKit
import USB
import XHCI

/// A random simulation: a guest that does what drivers do, devices with faults, and simulated time.
/// After each step an oracle collects violations.
///
/// The same seed gives the same run, so the code must not iterate a `Set` or `Dictionary`.
final class Simulation {
    /// The random configuration of a run.
    struct Configuration: Sendable {
        var memory = SimulatedMachine.MemoryKind.local
        var ringSegments = [16]
        var eventSegments = [[64]]
        var moderation: UInt16 = 0
        var polls = false
        var endpointCount = 3
        var deviceCount = 1
        var faults = FaultyDevice.Faults.none
        var capabilities = Capabilities()
        /// SuperSpeed devices have endpoints with streams.
        var hasStreams = false
        /// Their primary arrays have 2^(n+1) entries.
        var maxPrimaryStreams = 1
        var hasSecondaryArrays = false
    }

    let seed: UInt64
    let configuration: Configuration
    let machine: SimulatedMachine
    let driver: GuestDriver
    var random: SplitMix64
    private var devices: [FaultyDevice] = []
    private var endpoints: [ModelEndpoint] = []
    /// Endpoints from before the last reset of the controller.
    private var retired: [ModelEndpoint] = []
    private var reportedAccesses = 0
    private var isInterruptEnabled: [Bool]
    private(set) var violations: [String] = []
    /// The number of TDs that have ended by an event.
    private(set) var endedCount = 0
    var nextEventData: UInt64 = 1
    /// The slot and endpoint of an expected Invalid Stream ID Error, after a doorbell with such an
    /// ID.
    private var refused: (slot: Int, contextIndex: Int)?

    init(seed: UInt64) throws {
        self.seed = seed
        var random = SplitMix64(seed: seed)
        configuration = Self.draw(&random)
        self.random = random
        machine = try SimulatedMachine(
            configuration.memory, capabilities: configuration.capabilities,
            memory: GuestRAM(size: 32 << 20))
        var options = GuestDriver.Options()
        options.eventRings = configuration.eventSegments
        options.moderationInterval = configuration.moderation
        options.waitsForInterrupts = !configuration.polls
        driver = GuestDriver(machine, options)
        isInterruptEnabled = configuration.eventSegments.map { _ in true }
        driver.onEvent = { [weak self] event in self?.check(event) }
        machine.interrupts.onSignal = { [weak self] vector in
            guard let self else { return }
            if vector >= isInterruptEnabled.count || !isInterruptEnabled[vector] {
                violations.append("vector \(vector) signalled while disabled")
            }
        }
    }

    private static func draw(_ random: inout SplitMix64) -> Configuration {
        var drawn = Configuration()
        drawn.memory = random.oneIn(3) ? .remote : .local
        drawn.ringSegments = (0..<random.number(1...4)).map { _ in random.number(3...24) }
        if drawn.ringSegments.reduce(0, +) < 16 { drawn.ringSegments.append(20) }
        drawn.eventSegments = (0..<random.number(1...3)).map { _ in
            (0..<random.number(1...3)).map { _ in random.number(16...80) }
        }
        drawn.moderation = random.pick([0, 0, 1, 160, 4000])
        drawn.polls = random.oneIn(4)
        drawn.endpointCount = random.number(1...6)
        drawn.deviceCount = random.number(1...2)
        if random.oneIn(2) {
            drawn.faults = .all
            // The oracle relies on the lengths that the device reports.
            drawn.faults.impossibleLength = 0
        }
        drawn.capabilities.interrupters = random.number(drawn.eventSegments.count...8)
        drawn.capabilities.slots = random.pick([2, 8, 64])
        drawn.hasStreams = random.oneIn(2)
        drawn.maxPrimaryStreams = random.number(1...4)
        drawn.hasSecondaryArrays = random.oneIn(3)
        return drawn
    }

    // MARK: - Steps

    /// Starts the controller, attaches the devices and configures them.
    func start() throws {
        for number in 0..<configuration.deviceCount {
            let device = FaultyDevice(
                configuration.hasStreams
                    ? random.pick([.high, .superSpeed, .superSpeed])
                    : random.pick([.full, .high, .high, .superSpeed]),
                seed: seed &+ UInt64(number) &* 977,
                faults: .none, loop: machine.loop)
            devices.append(device)
        }
        try driver.start()
        for device in devices { try machine.attach(device) }
        try enumerate()
    }

    private func enumerate() throws {
        endpoints = []
        _ = driver.takeAll(after: .milliseconds(200))
        for (device, port) in zip(sortedDevices, driver.connectedPorts) {
            device.faults = .none
            let slot = try driver.address(port: port)
            var wanted: [GuestEndpointConfiguration] = []
            var streamed: [EndpointAddress] = []
            for number in 0..<configuration.endpointCount {
                let address = UInt8(number / 2 + 1)
                let segments = configuration.ringSegments
                if configuration.hasStreams, device.speed.isSuperSpeed, random.oneIn(2) {
                    streamed.append(EndpointAddress(address, number % 2 == 0 ? .in : .out))
                    continue
                }
                wanted.append(
                    number % 2 == 0
                        ? .bulkIn(address, segments: segments)
                        : .bulkOut(address, segments: segments))
            }
            let made = wanted.isEmpty ? [] : try slot.configure(wanted)
            endpoints.append(ModelEndpoint(slot.control, .control, device))
            for (endpoint, configuration) in zip(made, wanted) {
                endpoints.append(ModelEndpoint(endpoint, configuration.address, device))
            }
            for address in streamed { try addStreams(slot, address, device) }
            device.faults = configuration.faults
        }
        driver.discard { _ in true }
    }

    /// An endpoint with streams, some of which the guest uses.
    private func addStreams(
        _ slot: GuestSlot, _ address: EndpointAddress, _ device: FaultyDevice
    ) throws {
        let entries = 2 << configuration.maxPrimaryStreams
        var layout = GuestStreams.Layout.linear
        if configuration.hasSecondaryArrays {
            layout = .secondary(rings: Set((1..<entries).filter { _ in random.oneIn(3) }))
        }
        let streams = try GuestStreams(
            slot, address, maxPrimaryStreams: configuration.maxPrimaryStreams, layout: layout,
            segments: configuration.ringSegments)
        if case .linear = layout, device.streamCounts[address] != entries - 1 {
            violations.append("the controller did not set \(entries - 1) streams on a device")
        }
        var numbers = streams.rings.keys.sorted()
        for _ in 0..<random.number(1...5) where !numbers.isEmpty {
            let number = numbers.remove(at: random.number(0...numbers.count - 1))
            guard let stream = streams.endpoint(number) else { continue }
            endpoints.append(ModelEndpoint(stream, address, device))
        }
    }

    /// The used streams of an endpoint, or the endpoint itself if it has none.
    private func siblings(of endpoint: ModelEndpoint) -> [ModelEndpoint] {
        endpoints.filter {
            $0.endpoint.slot == endpoint.endpoint.slot
                && $0.endpoint.contextIndex == endpoint.endpoint.contextIndex
        }
    }

    /// The devices in the order of their ports, USB 2 ports first.
    private var sortedDevices: [FaultyDevice] {
        devices.filter { !$0.speed.isSuperSpeed } + devices.filter(\.speed.isSuperSpeed)
    }

    /// A random step, and its check.
    func step() throws {
        switch random.number(0...99) {
        case 0..<45: submit(random.pick(endpoints), ringing: true)
        case 45..<55: submit(random.pick(endpoints), ringing: false)
        case 55..<60: random.pick(endpoints).endpoint.ringDoorbell()
        case 60..<75: machine.pass(.microseconds(Int64(random.number(1...3000))))
        case 75..<87: try stop(random.pick(endpoints))
        case 87..<90: try driver.succeed(.command(.noOpCommand))
        case 90..<93: disableInterrupts()
        case 93..<94 where random.oneIn(3): try restart()
        case 94..<97: try misuseStreams(random.pick(endpoints))
        default: machine.turn()
        }
        driver.collect()
        for endpoint in endpoints { enqueueNextPart(endpoint) }
        for endpoint in endpoints where endpoint.isHalted {
            collectModeratedEvents()
            try recover(endpoint)
        }
        driver.discard { _ in true }
        gatherViolations()
    }

    /// Lets all TDs end, without further faults, and checks the final state.
    func finish() throws {
        for device in devices { device.faults = .none }
        for _ in 0..<200 where endpoints.contains(where: { !$0.queue.isEmpty }) {
            for endpoint in endpoints {
                if endpoint.isHalted { try recover(endpoint) }
                endpoint.endpoint.ringDoorbell()
            }
            machine.pass(.milliseconds(100))
            driver.collect()
            for endpoint in endpoints where !endpoint.queue.isEmpty && !endpoint.isHalted {
                if enqueueNextPart(endpoint) { continue }
                if endpoint.isControl, !endpoint.device.holds(endpoint.address) {
                    endpoint.fail(
                        "a control request has not completed, though the device does not hold it")
                }
                // A silent device ends a transfer only when the driver stops the endpoint.
                if try endpoint.endpoint.stop().code == .success, endpoint.isControl {
                    try skip(endpoint)
                }
            }
        }
        driver.collect()
        for endpoint in endpoints { endpoint.checkIdle() }
        gatherViolations()
        if !machine.memory.damagedCanaries().isEmpty {
            violations.append("memory outside of allocations was written")
        }
        if machine.isSpinning { violations.append("the controller never becomes idle") }
        if driver.machine.read32(driver.registers.status) & 0x1004 != 0 {
            violations.append("the controller failed: HSE or HCE")
        }
    }

    private func gatherViolations() {
        for endpoint in endpoints + retired { endpoint.checkReusedBuffers() }
        for endpoint in retired { violations += endpoint.violations }
        for endpoint in retired { endpoint.clearViolations() }
        for device in devices where device.accessesToReusedMemory > reportedAccesses {
            reportedAccesses = device.accessesToReusedMemory
            violations.append("a device can access memory of a transfer that has ended")
        }
        for endpoint in endpoints where !endpoint.violations.isEmpty {
            violations += endpoint.violations
            endpoint.clearViolations()
        }
    }

    private func check(_ event: GuestEvent) {
        guard event.isTransfer else { return }
        let concerned = endpoints.filter {
            $0.endpoint.slot == event.slot && $0.endpoint.contextIndex == event.endpoint
        }
        guard let first = concerned.first else {
            // Events of the enumeration precede the model.
            if !endpoints.isEmpty { violations.append("an event of an unknown endpoint: \(event)") }
            return
        }
        if let expected = refused, expected == (event.slot, event.endpoint),
            event.code == .invalidStreamID
        {
            refused = nil
            for stream in concerned { stream.isHalted = true }
            return
        }
        // A TRB belongs to one stream only.
        let endpoint = concerned.first { $0.mayReport(event) } ?? first
        let before = endpoint.queue.count
        endpoint.check(event)
        endedCount += before - endpoint.queue.count
        // All streams of an endpoint halt together.
        if endpoint.isHalted { for stream in concerned { stream.isHalted = true } }
    }

    // MARK: - Actions

    /// Disables an interrupter for up to 3 ms.
    private func disableInterrupts() {
        let number = random.number(0...isInterruptEnabled.count - 1)
        enableInterrupts(number, false)
        machine.pass(.microseconds(Int64(random.number(1...3000))))
        enableInterrupts(number, true)
        collectModeratedEvents()
    }

    /// Collects all posted events, with time for interrupt moderation.
    private func collectModeratedEvents() {
        guard configuration.moderation > 0, !configuration.polls else { return driver.collect() }
        _ = machine.advance(limit: .milliseconds(2)) {
            driver.collect()
            return false
        }
    }

    private func enableInterrupts(_ number: Int, _ isEnabled: Bool) {
        isInterruptEnabled[number] = isEnabled
        machine.write32(isEnabled ? 2 : 0, at: driver.registers.interrupter(number))
    }

    private func stop(_ endpoint: ModelEndpoint) throws {
        let event = try endpoint.endpoint.stop()
        collectModeratedEvents()
        guard event.code == .success else {
            if event.code != .contextStateError {
                violations.append("Stop Endpoint completed with \(event)")
            }
            return
        }
        if endpoint.device.holds(endpoint.address) {
            violations.append("the device holds a transfer of a stopped endpoint")
        }
        let context = endpoint.endpoint.context
        if context.state != .stopped {
            violations.append("endpoint state \(context.state) after Stop Endpoint")
        }
        let streams = siblings(of: endpoint)
        for stream in streams where stream.isControl || random.oneIn(3) { try skip(stream) }
        if !endpoint.isControl, random.oneIn(4) { machine.pass(.microseconds(500)) }
        // A stream without a doorbell continues with its next one.
        for stream in streams where streams.count == 1 || !random.oneIn(4) {
            stream.endpoint.ringDoorbell()
        }
    }

    /// Sends a command and a doorbell with an invalid Stream ID. The endpoint is stopped before, as
    /// the specification does not define what a running one loses.
    private func misuseStreams(_ endpoint: ModelEndpoint) throws {
        guard endpoint.endpoint.stream > 0, try endpoint.endpoint.stop().code == .success else {
            return
        }
        collectModeratedEvents()
        let guest = endpoint.endpoint
        let bad = random.pick([0, 16 << configuration.maxPrimaryStreams, 65533, 65534, 65535])
        let event = try driver.command(
            .setDequeuePointer(
                slot: guest.slot, endpoint: guest.contextIndex, guest.ring.enqueuePointer,
                cycle: true, stream: bad, streamType: 1))
        if event.code != .trbError {
            violations.append("Set TR Dequeue Pointer with stream \(bad) completed with \(event)")
        }
        if random.oneIn(2) {
            refused = (guest.slot, guest.contextIndex)
            guest.ringDoorbell(stream: bad)
            machine.pass(.milliseconds(1))
            collectModeratedEvents()
            if refused != nil { violations.append("no event after a doorbell with stream \(bad)") }
            if guest.context.state != .halted {
                violations.append(
                    "endpoint state \(guest.context.state) after a doorbell with stream \(bad)")
            }
        } else {
            for stream in siblings(of: endpoint) { stream.endpoint.ringDoorbell() }
        }
    }

    /// Skips the TD at the head of a stopped endpoint.
    private func skip(_ endpoint: ModelEndpoint) throws {
        guard endpoint.queue.count > 0 else { return }
        endpoint.skipHead()
        // DCS is the cycle bit that was written into the TRB.
        let next = endpoint.queue.first?.addresses[0]
        let cycle = next.map { machine.memory.load(UInt32.self, at: $0 + 12) & 1 == 1 }
        let event = try endpoint.endpoint.setDequeuePointer(next, cycle: cycle)
        if event.code != .success {
            violations.append(
                "Set TR Dequeue Pointer of a stopped endpoint completed with \(event)")
        }
    }

    private func recover(_ endpoint: ModelEndpoint) throws {
        let streams = siblings(of: endpoint)
        let failed = streams.first { $0.queue.first?.failure != nil }
        let failure = failed?.queue.first?.failure
        let isRetry = failure == .usbTransactionError && !endpoint.isControl && random.oneIn(2)
        let event = try endpoint.endpoint.reset(preservingTransferState: isRetry)
        if event.code != .success {
            violations.append("Reset Endpoint of a halted endpoint completed with \(event)")
        }
        for stream in streams {
            stream.isHalted = false
            stream.queue.first?.failure = nil
        }
        endpoint.device.clearHalt(endpoint.address)
        if let failed, !isRetry { try skip(failed) }
        for stream in streams { stream.endpoint.ringDoorbell() }
    }

    private func restart() throws {
        for device in devices { device.faults = .none }
        for endpoint in endpoints { endpoint.device.clearHalt(endpoint.address) }
        retired = endpoints
        endpoints = []
        try driver.start()
        for endpoint in retired { endpoint.reuseAllBuffers() }
        if devices.contains(where: { $0.waitingCount > 0 }) {
            violations.append("transfers outlived a controller reset")
        }
        try enumerate()
    }
}
