// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import USB
import XHCI

/// A guest that does, by the dice, what drivers do, with devices that misbehave by the dice, on a
/// virtual clock; after each step an oracle looks for broken promises.
///
/// The same seed is the same run. It must not iterate a `Set` or `Dictionary`.
final class Simulation {
    /// What was drawn.
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
    }

    let seed: UInt64
    let configuration: Configuration
    let machine: SimulatedMachine
    let driver: GuestDriver
    private var random: SplitMix64
    private var devices: [FaultyDevice] = []
    private var endpoints: [ModelEndpoint] = []
    private var isInterruptEnabled: [Bool]
    private(set) var violations: [String] = []
    /// TDs that came to an end of their own.
    private(set) var endedCount = 0
    private var nextEventData: UInt64 = 1

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
        driver.onEvent = { [weak self] event in self?.judge(event) }
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
            // The oracle believes the lengths that the device tells.
            drawn.faults.impossibleLength = 0
        }
        drawn.capabilities.interrupters = random.number(drawn.eventSegments.count...8)
        drawn.capabilities.slots = random.pick([2, 8, 64])
        return drawn
    }

    // MARK: - Steps

    /// Sets everything up.
    func start() throws {
        for number in 0..<configuration.deviceCount {
            let device = FaultyDevice(
                random.pick([.full, .high, .high, .superSpeed]),
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
            for number in 0..<configuration.endpointCount {
                let address = UInt8(number / 2 + 1)
                let segments = configuration.ringSegments
                wanted.append(
                    number % 2 == 0
                        ? .bulkIn(address, segments: segments)
                        : .bulkOut(address, segments: segments))
            }
            let made = try slot.configure(wanted)
            endpoints.append(ModelEndpoint(slot.control, .control, device))
            for (endpoint, configuration) in zip(made, wanted) {
                endpoints.append(ModelEndpoint(endpoint, configuration.address, device))
            }
            device.faults = configuration.faults
        }
        driver.discard { _ in true }
    }

    /// The devices in the order of their ports: USB 2 first.
    private var sortedDevices: [FaultyDevice] {
        devices.filter { !$0.speed.isSuperSpeed } + devices.filter(\.speed.isSuperSpeed)
    }

    /// One step and its check.
    func step() throws {
        switch random.number(0...99) {
        case 0..<45: submit(random.pick(endpoints), ringing: true)
        case 45..<55: submit(random.pick(endpoints), ringing: false)
        case 55..<60: random.pick(endpoints).endpoint.ringDoorbell()
        case 60..<75: machine.pass(.microseconds(Int64(random.number(1...3000))))
        case 75..<87: try stop(random.pick(endpoints))
        case 87..<90: try driver.succeed(.command(.noOpCommand))
        case 90..<93: closeInterrupts()
        case 93..<94 where random.oneIn(3): try restart()
        default: machine.turn()
        }
        driver.collect()
        for endpoint in endpoints where endpoint.isHalted {
            settle()
            try recover(endpoint)
        }
        driver.discard { _ in true }
        gatherViolations()
    }

    /// Lets everything end: no more faults, nothing silent, every TD done.
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
                // A silent device lets go of a transfer only when the driver stops it.
                if try endpoint.endpoint.stop().code == .success, endpoint.isControl {
                    try skip(endpoint)
                }
            }
        }
        driver.collect()
        for endpoint in endpoints { endpoint.checkIdle() }
        gatherViolations()
        if !machine.memory.damagedCanaries().isEmpty {
            violations.append("memory that was not handed out was written")
        }
        if machine.isSpinning { violations.append("the controller spins") }
        if driver.machine.read32(driver.registers.status) & 0x1004 != 0 {
            violations.append("the controller failed: HSE or HCE")
        }
    }

    private func gatherViolations() {
        for endpoint in endpoints where !endpoint.violations.isEmpty {
            violations += endpoint.violations
            endpoint.forgetViolations()
        }
    }

    private func judge(_ event: GuestEvent) {
        guard event.isTransfer else { return }
        guard
            let endpoint = endpoints.first(where: {
                $0.endpoint.slot == event.slot && $0.endpoint.contextIndex == event.endpoint
            })
        else {
            // Enumeration has its own control transfers.
            if !endpoints.isEmpty { violations.append("an event of no endpoint: \(event)") }
            return
        }
        let before = endpoint.queue.count
        endpoint.judge(event)
        endedCount += before - endpoint.queue.count
    }

    // MARK: - Actions

    /// Disables an interrupter for a while.
    private func closeInterrupts() {
        let number = random.number(0...isInterruptEnabled.count - 1)
        enableInterrupts(number, false)
        machine.pass(.microseconds(Int64(random.number(1...3000))))
        enableInterrupts(number, true)
        settle()
    }

    /// Waits until moderated interrupts have told of every event that is there.
    private func settle() {
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
        settle()
        guard event.code == .success else {
            if event.code != .contextStateError {
                violations.append("stop of an endpoint ended as \(event)")
            }
            return
        }
        if endpoint.device.holds(endpoint.address) {
            violations.append("a transfer of a stopped endpoint is with the device")
        }
        let context = endpoint.endpoint.context
        if context.state != .stopped { violations.append("stopped, but \(context.state)") }
        if endpoint.isControl || random.oneIn(3) {
            try skip(endpoint)
        } else if random.oneIn(4) {
            machine.pass(.microseconds(500))
        }
        endpoint.endpoint.ringDoorbell()
    }

    /// Gives up the TD at the head of a stopped endpoint.
    private func skip(_ endpoint: ModelEndpoint) throws {
        guard endpoint.queue.count > 0 else { return }
        endpoint.skipHead()
        // The cycle state of a TRB is the one that was written into it.
        let next = endpoint.queue.first?.addresses[0]
        let cycle = next.map { machine.memory.load(UInt32.self, at: $0 + 12) & 1 == 1 }
        let event = try endpoint.endpoint.setDequeuePointer(next, cycle: cycle)
        if event.code != .success { violations.append("a stopped endpoint refused \(event)") }
    }

    private func recover(_ endpoint: ModelEndpoint) throws {
        let failure = endpoint.queue.first?.failure
        let isRetry = failure == .usbTransactionError && !endpoint.isControl && random.oneIn(2)
        let event = try endpoint.endpoint.reset(preservingTransferState: isRetry)
        if event.code != .success { violations.append("a halted endpoint refused \(event)") }
        endpoint.isHalted = false
        endpoint.queue.first?.failure = nil
        endpoint.device.clearHalt(endpoint.address)
        if !isRetry { try skip(endpoint) }
        endpoint.endpoint.ringDoorbell()
    }

    private func restart() throws {
        for device in devices { device.faults = .none }
        for endpoint in endpoints { endpoint.device.clearHalt(endpoint.address) }
        endpoints = []
        try driver.start()
        if devices.contains(where: { $0.waitingCount > 0 }) {
            violations.append("transfers outlived a controller reset")
        }
        try enumerate()
    }

    // MARK: - Making TDs

    private func submit(_ endpoint: ModelEndpoint, ringing: Bool) {
        let drawn: ModelTransfer?
        if endpoint.isControl {
            drawn = endpoint.queue.isEmpty ? control(endpoint) : nil
        } else {
            drawn = normal(endpoint)
        }
        if let drawn { endpoint.queue.append(drawn) }
        if ringing { endpoint.endpoint.ringDoorbell() }
    }

    private func control(_ endpoint: ModelEndpoint) -> ModelTransfer? {
        guard endpoint.room >= 4 else { return nil }
        let length = random.pick([0, 1, 8, 18, 64, 200])
        let isIn = random.oneIn(2) || length == 0
        let packet = SetupPacket(
            requestType: isIn ? 0xc0 : 0x40, request: 9, value: 0, index: 0, length: UInt16(length))
        var trbs: [GuestTRB] = [.setup(packet)]
        var buffers: [GuestAddress?] = [nil]
        let bytes = isIn ? [] : random.bytes(length)
        if length > 0 {
            let buffer = allocate(length, bytes: isIn ? nil : bytes)
            trbs.append(.data(buffer, length, isIn ? .in : .out, .interruptOnShortPacket))
            buffers.append(buffer)
        }
        trbs.append(.status(isIn && length > 0 ? .out : .in, .interruptOnCompletion))
        buffers.append(nil)
        let addresses = endpoint.endpoint.ring.push(trbs)
        return ModelTransfer(
            trbs: trbs, addresses: addresses, lengths: length > 0 ? [0, length, 0] : [0, 0],
            buffers: buffers, bytes: bytes, isIn: isIn, isControl: true)
    }

    private func normal(_ endpoint: ModelEndpoint) -> ModelTransfer? {
        let isIn = endpoint.address.direction == .in
        // The order of events is only known within one interrupter.
        let target = endpoint.endpoint.contextIndex % configuration.eventSegments.count
        let parts = random.number(1...min(6, max(1, endpoint.room - 1)))
        guard endpoint.room >= parts + 1 else { return nil }
        let endsWithEventData = random.oneIn(4)
        var trbs: [GuestTRB] = []
        var lengths: [Int] = []
        var buffers: [GuestAddress?] = []
        var bytes: [UInt8] = []
        if random.oneIn(12) {
            trbs = [GuestTRB.noOp(.interruptOnCompletion).interrupter(target)]
            lengths = [0]
            buffers = [nil]
        } else if !isIn, random.oneIn(8) {
            bytes = random.bytes(random.number(0...8))
            trbs = [GuestTRB.immediate(bytes, .interruptOnCompletion).interrupter(target)]
            lengths = [bytes.count]
            buffers = [nil]
        } else {
            for part in 0..<parts {
                let length = random.pick([0, 1, 31, 64, 100, 512, 600])
                let data = isIn ? nil : random.bytes(length)
                let buffer = allocate(length, bytes: data)
                var flags: GuestTRB.Flags =
                    isIn && !endsWithEventData ? .interruptOnShortPacket : []
                let isLast = part == parts - 1
                if !isLast || endsWithEventData { flags.insert(.chain) }
                if isLast && !endsWithEventData { flags.insert(.interruptOnCompletion) }
                if configuration.polls, random.oneIn(5) { flags.insert(.blockEventInterrupt) }
                trbs.append(GuestTRB.normal(buffer, length, flags).interrupter(target))
                lengths.append(length)
                buffers.append(buffer)
                bytes += data ?? []
            }
            if endsWithEventData {
                nextEventData += 1
                trbs.append(
                    GuestTRB.eventData(nextEventData << 48 | 0xed, .interruptOnCompletion)
                        .interrupter(target))
                lengths.append(0)
                buffers.append(nil)
            }
        }
        let addresses = endpoint.endpoint.ring.push(trbs)
        return ModelTransfer(
            trbs: trbs, addresses: addresses, lengths: lengths, buffers: buffers, bytes: bytes,
            isIn: isIn, isControl: false)
    }

    private func allocate(_ count: Int, bytes: [UInt8]?) -> GuestAddress {
        let buffer = machine.memory.allocate(count, alignment: random.pick([1, 4, 64]))
        if let bytes {
            machine.memory.write(bytes, at: buffer)
        } else {
            machine.memory.fill(ModelTransfer.filler, at: buffer, count: count)
        }
        return buffer
    }
}
