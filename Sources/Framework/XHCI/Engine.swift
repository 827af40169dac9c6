// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import Logging
internal import USB

/// The work of the controller: commands, transfers and events.
///
/// The engine is a value, so only one call may be in progress. While it waits for guest memory or
/// calls a device, other code may call the objects beside it (register file, root hub, inbox, lease
/// table), but not the engine.
struct Engine {
    let registers: RegisterFile
    let hub: RootHub
    let inbox: DeviceInbox
    var bus: SystemBus
    /// Device slots by slot number; the first one is not used.
    var slots: [Slot]
    var commands = CommandRing()

    /// Whether the controller runs: R/S is set and no halt is in progress.
    private var isRunning = false
    /// Whether a port has a change without an event.
    private var hasPortEvents = false
    /// Endpoints to service.
    private var runnable: EndpointSet
    /// Round-robin cursor: the next endpoint to service.
    private var cursor = (slot: 0, endpoint: 0)
    /// Endpoints whose events wait for an event ring that is full.
    private var waitingForEventRing: EndpointSet
    /// Isochronous endpoints with a wake time.
    private var scheduled: EndpointSet
    /// The number of the last transfer.
    private var sequence: UInt64 = 0
    /// The time of the next MFINDEX wrap, if the guest has enabled its event (EWE).
    private var wrapTime: Duration?
    /// The time at which HCH is set even if devices have not completed the cancelled transfers;
    /// `nil` if no halt is in progress.
    private var haltDeadline: Duration?
    /// The time of the next service pass if nothing happens before.
    private(set) var deadline: Duration?

    init(registers: RegisterFile, hub: RootHub, inbox: DeviceInbox, bus: SystemBus) {
        self.registers = registers
        self.hub = hub
        self.inbox = inbox
        self.bus = bus
        let count = registers.capabilities.slots
        slots = (0...count).map(Slot.init(number:))
        runnable = EndpointSet(slots: count)
        waitingForEventRing = EndpointSet(slots: count)
        scheduled = EndpointSet(slots: count)
    }

    /// Resets the controller (HCRST, xHCI 4.2). The leases of all transfers are revoked; devices
    /// are reset and stay attached.
    mutating func reset() {
        for slot in slots.indices where slots[slot].state != nil {
            slots[slot].dropEndpoints(from: 1, bus)
        }
        let count = registers.capabilities.slots
        slots = (0...count).map(Slot.init(number:))
        commands = CommandRing()
        runnable = EndpointSet(slots: count)
        waitingForEventRing = EndpointSet(slots: count)
        scheduled = EndpointSet(slots: count)
        isRunning = false
        haltDeadline = nil
        hasPortEvents = false
        wrapTime = nil
        deadline = nil
        bus.reset()
        registers.reset()
        hub.resetDevices()
    }

    /// Whether a service pass has something to do.
    func hasWork(now: Duration) -> Bool {
        if registers.hasWork || !inbox.isEmpty { return true }
        if let deadline { return deadline <= now }
        return false
    }

    /// Does the work that is due, within ``XHCILimits/passesPerService`` and
    /// ``XHCILimits/workPerService``.
    ///
    /// - Parameter isInterrupted: called between passes; `true` ends the service.
    mutating func service(now: Duration, isInterrupted: () -> Bool) {
        wakeScheduled(now: now)
        var budget = XHCILimits.workPerService
        var isDone = false
        for _ in 0..<XHCILimits.passesPerService where !isDone && budget > 0 && !isInterrupted() {
            registers.hasWork = false
            isDone = !servicePass(now: now, budget: &budget)
        }
        guard !isInterrupted() else {
            deadline = now
            return
        }
        deadline = nextDeadline(now: now)
        if !isDone { deadline = now }
    }

    /// Raises the interrupts that are due, and returns the time of the next service pass.
    private mutating func nextDeadline(now: Duration) -> Duration? {
        let interrupts = bus.raiseInterrupts(now: now)
        return [
            interrupts, commands.pendingStop?.deadline, wrapTime, nextScheduled(), haltDeadline,
        ].reduce(nil, Self.earlier)
    }

    private static func earlier(_ one: Duration?, _ other: Duration?) -> Duration? {
        guard let one, let other else { return one ?? other }
        return min(one, other)
    }

    /// One pass over messages, ports, commands and endpoints.
    ///
    /// - Returns: whether there is more to do.
    private mutating func servicePass(now: Duration, budget: inout Int) -> Bool {
        if registers.command.contains(.reset) { reset() }
        applyRunStop(now: now)
        handleDeviceMessages()
        servicePorts()
        guard isRunning else { return !inbox.isEmpty || registers.hasWork }
        bus.resumeEvents()
        retryWaitingEndpoints()
        reportPorts()
        reportWrap(now: now)
        // Doorbells before commands: one that was rung before Stop Endpoint must not undo it.
        handleDoorbells()
        let hasMoreCommands = !registers.streamDoorbells.isEmpty || serviceCommands(now: now)
        serviceEndpoints(budget: &budget, now: now)
        return hasMoreCommands || !runnable.isEmpty || !inbox.isEmpty
            || registers.hasWork
    }

    // MARK: - Running and halting

    private mutating func applyRunStop(now: Duration) {
        if isRunning, !registers.command.contains(.run) { beginHalt(now: now) }
        if let haltDeadline {
            handleDeviceMessages()
            guard areEndpointsDrained || haltDeadline <= now else { return }
            finishHalt()
        }
        guard !isRunning, registers.command.contains(.run) else { return }
        isRunning = true
        registers.status.remove(.halted)
        registers.microframes.start(now: now)
    }

    /// Starts a halt (xHCI 5.4.1.1): cancels all in-flight transfers as Stop Endpoint does, since
    /// the guest uses their memory for something else once HCH is set.
    private mutating func beginHalt(now: Duration) {
        isRunning = false
        haltDeadline = now + XHCILimits.haltTimeout
        endPendingStop()
        registers.microframes.stop(now: now)
        registers.commandRing.stop(at: commands.dequeuePointer)
        commands.mayHaveMore = false
        wrapTime = nil
        for slot in slots.indices {
            let owner = slots[slot].identity
            for endpoint in slots[slot].endpoints.indices {
                slots[slot].endpoints[endpoint]?.beginStop(owner)
            }
        }
    }

    private var areEndpointsDrained: Bool {
        slots.allSatisfy { $0.endpoints.allSatisfy { $0?.isDrained ?? true } }
    }

    /// Halts the controller (HCH). In-flight TDs are requeued and restart when R/S is set again; no
    /// doorbell is needed.
    private mutating func finishHalt() {
        haltDeadline = nil
        for slot in slots.indices {
            let owner = slots[slot].identity
            for endpoint in slots[slot].endpoints.indices {
                if slots[slot].endpoints[endpoint]?.finishHalt(owner, bus) ?? false {
                    runnable.insert(slot: slot, endpoint: endpoint)
                }
            }
        }
        registers.status.insert(.halted)
    }

    private mutating func reportWrap(now: Duration) {
        guard registers.command.contains(.wrapEventEnable) else {
            wrapTime = nil
            return
        }
        // A wrap while the ring is full has no event, since such events would wait without bound.
        if let wrapTime, wrapTime <= now, bus.hasRoom(in: 1) { bus.post(.microframeWrap, to: 0) }
        wrapTime = registers.microframes.nextWrap(now: now)
    }

    // MARK: - Ports

    /// Applies port register writes to devices and sets PCD for port changes, whether or not the
    /// controller runs.
    private mutating func servicePorts() {
        guard registers.hasPortWork else { return }
        registers.hasPortWork = false
        for port in registers.ports.indices {
            hub.applyDeviceActions(port: port)
            guard registers.ports[port].hasNewChange else { continue }
            registers.ports[port].hasNewChange = false
            registers.status.insert(.portChange)
            hasPortEvents = true
        }
    }

    /// Posts an event for each port with new changes. Changes while the controller was halted get
    /// their events when it runs.
    private mutating func reportPorts() {
        guard hasPortEvents else { return }
        for port in registers.ports.indices where !registers.ports[port].unreported.isEmpty {
            guard bus.hasRoomForCommands else { return }
            registers.ports[port].markReported()
            bus.post(.portStatusChange(port: port + 1), to: 0)
        }
        hasPortEvents = false
    }

    mutating func handleDeviceMessages() {
        for _ in 0..<XHCILimits.messagesPerPass {
            guard let message = inbox.next() else { return }
            switch message {
            case .completed(let completion): record(completion)
            case .disconnected(let connection): hub.detach(connection)
            case .detached(let connection): failTransfers(of: connection)
            case .woke(let connection): hub.wake(connection)
            }
        }
    }

    private mutating func record(_ completion: Transfer.Completion) {
        let (slot, endpoint) = (completion.id.slot, completion.id.endpoint)
        guard slot < slots.count, slots[slot].endpoints.indices.contains(endpoint),
            slots[slot].endpoints[endpoint]?.record(completion) == true
        else { return }
        runnable.insert(slot: slot, endpoint: endpoint)
    }

    /// Fails all transfers of a device that was detached.
    private mutating func failTransfers(of connection: PortConnection) {
        for slot in slots.indices where slots[slot].connection === connection {
            for endpoint in slots[slot].endpoints.indices {
                slots[slot].endpoints[endpoint]?.failAll()
                runnable.insert(slot: slot, endpoint: endpoint)
            }
        }
    }

    // MARK: - Endpoints

    mutating func handleDoorbells() {
        while let (slot, endpoints) = registers.doorbells.popFirst() {
            for endpoint in endpoints.setBits {
                handleDoorbell(slot, endpoint, stream: 0)
            }
        }
        for _ in 0..<XHCILimits.streamDoorbellsPerPass {
            guard let doorbell = registers.streamDoorbells.popFirst() else { return }
            handleDoorbell(doorbell.slot, doorbell.endpoint, stream: doorbell.stream)
        }
        // The rest is for the next pass.
        registers.hasWork = registers.hasWork || !registers.streamDoorbells.isEmpty
    }

    private mutating func handleDoorbell(_ slot: Int, _ endpoint: Int, stream: Int) {
        guard slots[slot].state != nil else { return }
        let owner = slots[slot].identity
        if slots[slot].endpoints[endpoint]?.ringDoorbell(stream: stream, owner, &bus) ?? false {
            runnable.insert(slot: slot, endpoint: endpoint)
        }
    }

    /// Makes endpoints runnable that waited for an event ring.
    private mutating func retryWaitingEndpoints() {
        while let (slot, endpoints) = waitingForEventRing.popFirst() {
            for endpoint in endpoints.setBits {
                runnable.insert(slot: slot, endpoint: endpoint)
            }
        }
    }

    /// Makes isochronous endpoints runnable whose wake time has come.
    private mutating func wakeScheduled(now: Duration) {
        guard isRunning, !scheduled.isEmpty else { return }
        let microframe = registers.microframes.count(now: now)
        forEachScheduled { engine, slot, endpoint, time in
            if time <= microframe { engine.runnable.insert(slot: slot, endpoint: endpoint) }
        }
    }

    /// The earliest wake time of all isochronous endpoints: one timer serves all of them.
    private mutating func nextScheduled() -> Duration? {
        guard isRunning, !scheduled.isEmpty else { return nil }
        var next: Int64?
        forEachScheduled { _, _, _, time in next = min(next ?? time, time) }
        return next.flatMap { registers.microframes.time(of: $0) }
    }

    /// Calls `body` with each scheduled endpoint and its wake time; removes endpoints without one
    /// from the set.
    private mutating func forEachScheduled(
        _ body: (inout Engine, _ slot: Int, _ endpoint: Int, _ time: Int64) -> Void
    ) {
        var start = 1
        while let (slot, endpoints) = scheduled.first(from: start) {
            start = slot + 1
            for endpoint in endpoints.setBits {
                if slots[slot].state != nil,
                    let time = slots[slot].endpoints[endpoint]?.wakeTime
                {
                    body(&self, slot, endpoint, time)
                } else {
                    scheduled.remove(slot: slot, endpoint: endpoint)
                }
            }
        }
    }

    private mutating func serviceEndpoints(budget: inout Int, now: Duration) {
        let microframe = registers.microframes.count(now: now)
        while budget > 0, let (slot, endpoints) = runnable.popFirst(from: cursor) {
            cursor = (slot + 1, 0)
            guard slots[slot].state != nil else { continue }
            let owner = slots[slot].identity
            for endpoint in endpoints.setBits {
                guard budget > 0 else {
                    if cursor.slot > slot { cursor = (slot, endpoint) }
                    runnable.insert(slot: slot, endpoint: endpoint)
                    continue
                }
                switch slots[slot].endpoints[endpoint]?.service(
                    owner, &bus, &sequence, budget: &budget, microframe: microframe)
                {
                case .more: runnable.insert(slot: slot, endpoint: endpoint)
                case .waitingForEventRing:
                    // No timer: the endpoint waits until the guest consumes events.
                    scheduled.remove(slot: slot, endpoint: endpoint)
                    waitingForEventRing.insert(slot: slot, endpoint: endpoint)
                case .idle, nil:
                    if slots[slot].endpoints[endpoint]?.wakeTime != nil {
                        scheduled.insert(slot: slot, endpoint: endpoint)
                    }
                }
            }
        }
    }
}
