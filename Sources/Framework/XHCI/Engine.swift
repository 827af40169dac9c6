// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import Logging
internal import USB

/// What the controller does when it is given time: commands, transfers and events.
///
/// The whole state is one value that a single call changes. While it waits for guest memory or talks
/// to a device, others may reach the register file, the root hub and the inbox, which are objects
/// beside it, but never the engine itself.
struct Engine {
    let registers: RegisterFile
    let hub: RootHub
    let inbox: DeviceInbox
    var bus: SystemBus
    /// By slot number; the first one is never used.
    var slots: [Slot]
    var commands = CommandRing()

    private var isRunning = false
    /// A port has changes that the guest has had no event for.
    private var hasPortEvents = false
    /// Endpoints to visit, and those whose events have no room.
    private var ready: EndpointSet
    /// Whose turn it is: the endpoint after the one that was visited last.
    private var turn = (slot: 0, endpoint: 0)
    private var blocked: EndpointSet
    /// Isochronous endpoints that are on the schedule.
    private var scheduled: EndpointSet
    /// Counts the transfers, so that no two have the same id.
    private var sequence: UInt64 = 0
    /// The next MFINDEX wrap, if the guest wants to be told.
    private var wrapTime: Duration?
    /// R/S was cleared: until when HCH waits for devices to give back the guest's memory.
    private var haltDeadline: Duration?
    /// Until when HCRST waits for devices to give back the guest's memory.
    private var resetDeadline: Duration?
    /// When the engine wants to be called without anything having happened.
    private(set) var deadline: Duration?

    init(registers: RegisterFile, hub: RootHub, inbox: DeviceInbox, bus: SystemBus) {
        self.registers = registers
        self.hub = hub
        self.inbox = inbox
        self.bus = bus
        let count = registers.capabilities.slots
        slots = (0...count).map(Slot.init(number:))
        ready = EndpointSet(slots: count)
        blocked = EndpointSet(slots: count)
        scheduled = EndpointSet(slots: count)
    }

    /// Forgets everything, as HCRST does; devices are reset and stay.
    mutating func reset() {
        dropSlots()
        let count = registers.capabilities.slots
        slots = (0...count).map(Slot.init(number:))
        commands = CommandRing()
        ready = EndpointSet(slots: count)
        blocked = EndpointSet(slots: count)
        scheduled = EndpointSet(slots: count)
        isRunning = false
        haltDeadline = nil
        hasPortEvents = false
        wrapTime = nil
        resetDeadline = nil
        deadline = nil
        bus.reset()
        registers.reset()
        hub.resetDevices()
    }

    /// HCRST stays set until no device can write into memory that the guest gave it before: after a
    /// reset the guest uses it for something else (xHCI 4.2, 5.4.1).
    private mutating func isReadyToReset(now: Duration) -> Bool {
        dropSlots()
        listenToDevices()
        let limit = resetDeadline ?? now + XHCILimits.cancelTimeout
        resetDeadline = limit
        return hub.isQuiet || limit <= now
    }

    /// Gives up what devices were asked for.
    private mutating func dropSlots() {
        for slot in slots.indices where slots[slot].state != nil {
            slots[slot].dropEndpoints(from: 1)
        }
    }

    /// Whether a call of ``service(now:)`` would find something.
    func hasWork(now: Duration) -> Bool {
        if registers.hasWork || !inbox.isEmpty { return true }
        if let deadline { return deadline <= now }
        return false
    }

    /// Does what is due, within bounds.
    ///
    /// - Parameter isInterrupted: asked between steps; the caller wants the engine back.
    mutating func service(now: Duration, isInterrupted: () -> Bool) {
        wakeScheduled(now: now)
        var budget = XHCILimits.workPerService
        var isDone = false
        for _ in 0..<XHCILimits.passesPerService where !isDone && budget > 0 && !isInterrupted() {
            registers.hasWork = false
            isDone = !serviceRound(now: now, budget: &budget)
        }
        guard !isInterrupted() else {
            deadline = now
            return
        }
        deadline = nextDeadline(now: now)
        if !isDone { deadline = now }
    }

    private mutating func nextDeadline(now: Duration) -> Duration? {
        let interrupts = bus.raiseInterrupts(now: now)
        // Until a reset is over, nothing else is looked at.
        if let resetDeadline { return resetDeadline }
        return [interrupts, commands.deadline, wrapTime, nextScheduled(), haltDeadline]
            .reduce(nil, Self.earlier)
    }

    private static func earlier(_ one: Duration?, _ other: Duration?) -> Duration? {
        guard let one, let other else { return one ?? other }
        return min(one, other)
    }

    /// One round through everything; `false` if nothing was left to do.
    private mutating func serviceRound(now: Duration, budget: inout Int) -> Bool {
        if registers.command.contains(.reset) {
            guard isReadyToReset(now: now) else { return false }
            reset()
        }
        followRunBit(now: now)
        listenToDevices()
        servicePorts()
        guard isRunning else { return !inbox.isEmpty || registers.hasWork }
        bus.resumeEvents()
        unblock()
        reportPorts()
        reportWrap(now: now)
        // Doorbells before commands: one that was rung before Stop Endpoint must not undo it.
        answerDoorbells()
        let hasMoreCommands = !registers.streamDoorbells.isEmpty || serviceCommands(now: now)
        visitEndpoints(budget: &budget, now: now)
        return hasMoreCommands || !ready.isEmpty || !inbox.isEmpty
            || registers.hasWork
    }

    // MARK: - Running and halting

    private mutating func followRunBit(now: Duration) {
        if isRunning, !registers.command.contains(.run) { beginHalt(now: now) }
        if let limit = haltDeadline {
            listenToDevices()
            guard isReadyToHalt || limit <= now else { return }
            finishHalt()
        }
        guard !isRunning, registers.command.contains(.run) else { return }
        isRunning = true
        registers.status.remove(.halted)
        registers.microframes.start(now: now)
    }

    /// Takes back what devices have: once HCH is set, the guest uses its memory for something else
    /// (xHCI 5.4.1.1).
    private mutating func beginHalt(now: Duration) {
        isRunning = false
        haltDeadline = now + XHCILimits.haltTimeout
        abandonWaiting()
        registers.microframes.stop(now: now)
        registers.commandRing.stop(at: commands.position)
        commands.mayHaveMore = false
        wrapTime = nil
        for slot in slots.indices {
            let owner = slots[slot].identity
            for endpoint in slots[slot].endpoints.indices {
                slots[slot].endpoints[endpoint]?.beginStop(owner)
            }
        }
    }

    private var isReadyToHalt: Bool {
        hub.isQuiet
            && slots.allSatisfy { $0.endpoints.allSatisfy { $0?.isReadyToStop ?? true } }
    }

    /// What was not finished is visited when the controller runs again, without a doorbell.
    private mutating func finishHalt() {
        haltDeadline = nil
        for slot in slots.indices {
            let owner = slots[slot].identity
            for endpoint in slots[slot].endpoints.indices {
                if slots[slot].endpoints[endpoint]?.finishHalt(owner, bus) ?? false {
                    ready.insert(slot: slot, endpoint: endpoint)
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
        if let wrapTime, wrapTime <= now { bus.post(.microframeWrap, to: 0) }
        wrapTime = registers.microframes.nextWrap(now: now)
    }

    // MARK: - Ports

    /// Tells devices what the guest did to their ports. PCD is set for what changed, whether or not
    /// the controller runs.
    private mutating func servicePorts() {
        guard registers.hasPortWork else { return }
        registers.hasPortWork = false
        for port in registers.ports.indices {
            hub.applyEffects(port: port)
            guard registers.ports[port].hasNewChange else { continue }
            registers.ports[port].hasNewChange = false
            registers.status.insert(.portChange)
            hasPortEvents = true
        }
    }

    /// Posts an event for each port with new changes. Those that came up while the controller stood
    /// still are told when it runs.
    private mutating func reportPorts() {
        guard hasPortEvents else { return }
        for port in registers.ports.indices where !registers.ports[port].unreported.isEmpty {
            guard bus.hasRoomForCommands else { return }
            registers.ports[port].markReported()
            bus.post(.portStatusChange(port: port + 1), to: 0)
        }
        hasPortEvents = false
    }

    mutating func listenToDevices() {
        for _ in 0..<XHCILimits.messagesPerPass {
            guard let message = inbox.next() else { return }
            switch message {
            case .completed(let completion): record(completion)
            case .disconnected(let connection): hub.unplug(connection)
            case .unplugged(let connection): loseDevice(connection)
            case .woke(let connection): hub.wake(connection)
            }
        }
    }

    private mutating func record(_ completion: Transfer.Completion) {
        let (slot, endpoint) = (completion.id.slot, completion.id.endpoint)
        guard slot < slots.count, slots[slot].endpoints.indices.contains(endpoint),
            slots[slot].endpoints[endpoint]?.record(completion) == true
        else { return }
        ready.insert(slot: slot, endpoint: endpoint)
    }

    private mutating func loseDevice(_ connection: PortConnection) {
        for slot in slots.indices where slots[slot].connection === connection {
            for endpoint in slots[slot].endpoints.indices {
                slots[slot].endpoints[endpoint]?.loseDevice(except: connection.lastTransfer)
                ready.insert(slot: slot, endpoint: endpoint)
            }
        }
    }

    // MARK: - Endpoints

    mutating func answerDoorbells() {
        while let (slot, endpoints) = registers.doorbells.popFirst() {
            for endpoint in endpoints.setBits {
                answerDoorbell(slot, endpoint, stream: 0)
            }
        }
        for _ in 0..<XHCILimits.streamDoorbellsPerPass {
            guard let ring = registers.streamDoorbells.popFirst() else { return }
            answerDoorbell(ring.slot, ring.endpoint, stream: ring.stream)
        }
        // The rest is for the next round.
        registers.hasWork = registers.hasWork || !registers.streamDoorbells.isEmpty
    }

    private mutating func answerDoorbell(_ slot: Int, _ endpoint: Int, stream: Int) {
        guard slots[slot].state != nil else { return }
        let owner = slots[slot].identity
        if slots[slot].endpoints[endpoint]?.ringDoorbell(stream: stream, owner, &bus) ?? false {
            ready.insert(slot: slot, endpoint: endpoint)
        }
    }

    /// Lets endpoints whose events had no room try again.
    private mutating func unblock() {
        while let (slot, endpoints) = blocked.popFirst() {
            for endpoint in endpoints.setBits {
                ready.insert(slot: slot, endpoint: endpoint)
            }
        }
    }

    /// Visits isochronous endpoints whose time has come.
    private mutating func wakeScheduled(now: Duration) {
        guard isRunning, !scheduled.isEmpty else { return }
        let microframe = registers.microframes.count(now: now)
        forEachScheduled { engine, slot, endpoint, time in
            if time <= microframe { engine.ready.insert(slot: slot, endpoint: endpoint) }
        }
    }

    /// When an isochronous endpoint is to be visited next: the one timer for all of them.
    private mutating func nextScheduled() -> Duration? {
        guard isRunning, !scheduled.isEmpty else { return nil }
        var next: Int64?
        forEachScheduled { _, _, _, time in next = min(next ?? time, time) }
        return next.flatMap { registers.microframes.time(of: $0) }
    }

    /// Calls `body` with each endpoint that is on the schedule, and when it is to be visited; takes
    /// those off the set that are not.
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

    private mutating func visitEndpoints(budget: inout Int, now: Duration) {
        let microframe = registers.microframes.count(now: now)
        while budget > 0, let (slot, endpoints) = ready.popFirst(from: turn) {
            turn = (slot + 1, 0)
            guard slots[slot].state != nil else { continue }
            let owner = slots[slot].identity
            for endpoint in endpoints.setBits {
                guard budget > 0 else {
                    if turn.slot > slot { turn = (slot, endpoint) }
                    ready.insert(slot: slot, endpoint: endpoint)
                    continue
                }
                switch slots[slot].endpoints[endpoint]?.visit(
                    owner, &bus, &sequence, budget: &budget, microframe: microframe)
                {
                case .more: ready.insert(slot: slot, endpoint: endpoint)
                case .blocked:
                    // Time does not help it.
                    scheduled.remove(slot: slot, endpoint: endpoint)
                    blocked.insert(slot: slot, endpoint: endpoint)
                case .idle, nil:
                    if slots[slot].endpoints[endpoint]?.wakeTime != nil {
                        scheduled.insert(slot: slot, endpoint: endpoint)
                    }
                }
            }
        }
    }

    /// Gives up transfers whose data lie in a range that is taken away.
    mutating func cancelTransfers(touching start: GuestAddress, count: UInt64) {
        for slot in slots.indices {
            let owner = slots[slot].identity
            for endpoint in slots[slot].endpoints.indices {
                slots[slot].endpoints[endpoint]?.cancelTransfers(
                    touching: start, count: count, owner)
            }
        }
    }
}
