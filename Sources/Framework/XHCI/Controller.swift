// SPDX-License-Identifier: Apache-2.0

public import DMA
internal import DequeModule
public import Logging
public import USB

/// An xHCI 1.1 host controller.
///
/// Register accesses only change the register file and mark work; ``service(now:)`` does the work:
/// it is the only function that touches guest memory or devices. So a register can be read and
/// written at any moment, even while `service` waits for a piece of guest memory. What else arrives
/// in the midst of a service, such as a reset or an unplugged device, waits for its end.
public final class Controller: USBBus {
    /// Bytes of the register space (BAR 0).
    public static let registerSpaceSize = 0x4000

    let registers: RegisterFile
    let memory: GuestMemory
    let hub: RootHub
    let interrupters: [Interrupter]
    let logger: Logger

    /// By slot id; place 0 stays empty.
    var slots: [Slot?]
    /// Where the command ring is read.
    var commandPosition = RingPosition(pointer: 0)
    /// A command that waits until devices have given back what it takes from them.
    var waitingCommand: WaitingCommand?
    /// Endpoints that have something to do, in the order in which that became so.
    var queuedEndpoints: Deque<Endpoint> = []
    /// Devices that completed something.
    private var completing: [Attachment] = []
    /// What was asked for outside of the service that is to do it.
    private var requests: [Request] = []
    private var isServicing = false
    /// Until when a reset waits for devices to give back memory.
    private var resetDeadline: Duration?
    /// The present service's time.
    private(set) var now: Duration = .zero
    private var nextTransfer: UInt64 = 0
    /// The last wrap of MFINDEX that was looked at.
    private var lastWrap: Int64 = 0

    /// A request from outside the service.
    enum Request {
        case detach(Attachment)
        case wake(Attachment)
        case attach(Attachment)
        case cancel(start: GuestAddress, count: UInt64)
        case reset
    }

    /// A controller after power-on, with no device.
    public init(
        memory: GuestMemory, interrupts: any InterruptSink, capabilities: Capabilities = .init(),
        logger: Logger
    ) {
        let registers = RegisterFile(capabilities)
        self.registers = registers
        self.memory = memory
        self.logger = logger
        hub = RootHub(registers)
        slots = Array(repeating: nil, count: capabilities.slots + 1)
        interrupters = (0..<capabilities.interrupters).map {
            Interrupter($0, registers: registers, memory: memory, sink: interrupts)
        }
    }

    // MARK: - Registers

    /// Reads registers, at any offset and width; what lies outside reads as zero.
    public func read(at offset: Int, into bytes: inout OutputSpan<UInt8>, now: Duration) {
        var offset = offset
        while bytes.freeCapacity > 0 {
            let value =
                MMIORegister(offset: offset & ~3, capabilities: registers.capabilities)
                .map { registers.read($0, now: now) } ?? 0
            for place in (offset & 3)..<4 where bytes.freeCapacity > 0 {
                bytes.append(UInt8(truncatingIfNeeded: value >> UInt32(place * 8)))
            }
            offset = (offset & ~3) &+ 4
        }
    }

    /// Writes registers, at any offset and width.
    public func write(at offset: Int, from bytes: Span<UInt8>, now: Duration) {
        var offset = offset
        var index = 0
        while index < bytes.count {
            var value: UInt32 = 0
            var enabled: UInt32 = 0
            for place in (offset & 3)..<4 where index < bytes.count {
                value |= UInt32(bytes[index]) << UInt32(place * 8)
                enabled |= 0xff << UInt32(place * 8)
                index += 1
            }
            if let register = MMIORegister(
                offset: offset & ~3, capabilities: registers.capabilities)
            {
                registers.write(value, to: register, enabled: enabled, now: now)
            }
            offset = (offset & ~3) &+ 4
        }
    }

    // MARK: - Devices

    /// Plugs a device into a free port of its kind.
    public func attach(_ device: any USBDevice) throws(AttachError) {
        let isWaiting = requests.contains {
            if case .attach(let attachment) = $0 { attachment.device === device } else { false }
        }
        guard hub.attachment(of: device) == nil, !isWaiting else { throw .alreadyAttached }
        guard let port = hub.freePort(for: device.speed) else { throw .noFreePort(device.speed) }
        let attachment = Attachment(device, portIndex: port, controller: self)
        hub.plugIn(attachment)
        device.attach(to: attachment)
    }

    /// Unplugs a device; one that is not attached is left alone.
    public func detach(_ device: any USBDevice) {
        guard let attachment = hub.attachment(of: device) else { return }
        noteRequest(.detach(attachment))
    }

    // MARK: - What comes from outside the service

    /// Returns to the state after power-on; devices stay plugged in. Memory and interrupts are not
    /// touched. It takes effect at once, or when a `service` in progress ends.
    public func reset() { noteRequest(.reset) }

    /// Gives up transfers whose data lies in a range that the client takes away.
    public func cancelTransfers(touching start: GuestAddress, count: UInt64) {
        noteRequest(.cancel(start: start, count: count))
    }

    func noteRequest(_ request: Request) {
        requests.append(request)
        performRequests()
    }

    func noteCompletions(of attachment: Attachment) { completing.append(attachment) }

    private func performRequests() {
        guard !isServicing else { return }
        isServicing = true
        defer { isServicing = false }
        while !requests.isEmpty {
            switch requests.removeFirst() {
            case .detach(let attachment): unplug(attachment)
            case .wake(let attachment): hub.remoteWake(attachment)
            case .attach(let attachment): hub.plugIn(attachment)
            case .cancel(let start, let count): abandonTransfers(touching: start, count: count)
            case .reset: resetNow()
            }
        }
    }

    private func unplug(_ attachment: Attachment) {
        guard hub.attachments[attachment.portIndex] === attachment else { return }
        attachment.close()
        hub.unplug(attachment)
        endTransfers(port: attachment.portIndex)
        attachment.device.detached()
    }

    private func resetNow() {
        resetDeadline = nil
        waitingCommand = nil
        for case let slot? in slots {
            for case let endpoint? in slot.endpoints { abandonTransfers(of: endpoint) }
        }
        slots = Array(repeating: nil, count: slots.count)
        queuedEndpoints.removeAll(keepingCapacity: true)
        for interrupter in interrupters { interrupter.reset() }
        registers.reset()
        hub.reset()
        for case let attachment? in hub.attachments { attachment.device.reset() }
        lastWrap = 0
    }

    // MARK: - Service

    /// Does all work that is due and returns the time at which there will be more, if known.
    ///
    /// Called at the end of each turn of the event loop; costs next to nothing when nothing is due.
    public func service(now: Duration) -> Duration? {
        guard !isServicing else { return nil }
        self.now = now
        performRequests()
        isServicing = true
        var wakeUp = serviceReset()
        serviceRunState()
        servicePorts()
        takeCompletions()
        for interrupter in interrupters { interrupter.flush() }
        var budget = Limits.workPerService
        if registers.isRunning {
            while registers.isRunning && budget > 0 {
                let before = budget
                serviceCommands(&budget)
                serviceDoorbells()
                serviceEndpoints(&budget)
                takeCompletions()
                if budget == before { break }
            }
            servicePortEvents()
            wakeUp = earliest(wakeUp, serviceMicroframes())
        }
        if let waitingCommand { wakeUp = earliest(wakeUp, waitingCommand.deadline) }
        for interrupter in interrupters {
            wakeUp = earliest(wakeUp, interrupter.interrupt(now: now))
        }
        isServicing = false
        if !requests.isEmpty {
            performRequests()
            return now
        }
        let isUnfinished = budget <= 0 || !completing.isEmpty
        return isUnfinished ? now : wakeUp
    }

    private func earliest(_ left: Duration?, _ right: Duration?) -> Duration? {
        guard let left else { return right }
        return right.map { min(left, $0) } ?? left
    }

    /// HCRST stays set until the devices have given back the guest's memory (xHCI 5.4.1).
    private func serviceReset() -> Duration? {
        guard registers.work.contains(.reset) else { return nil }
        let deadline = resetDeadline ?? now + Limits.drainTime
        resetDeadline = deadline
        var isQuiet = true
        for case let slot? in slots {
            for case let endpoint? in slot.endpoints {
                abandonTransfers(of: endpoint)
                if !endpoint.isQuiet { isQuiet = false }
            }
        }
        if !isQuiet {
            takeCompletions()
            for case let slot? in slots {
                for case let endpoint? in slot.endpoints where !endpoint.isQuiet {
                    if now < deadline { return deadline }
                }
            }
        }
        resetNow()
        return nil
    }

    private func serviceRunState() {
        guard registers.work.contains(.runState) else { return }
        registers.work.remove(.runState)
        if registers.isRunning {
            lastWrap = 0
            // What waited for the controller to run.
            for case let slot? in slots {
                for case let endpoint? in slot.endpoints where !endpoint.inFlight.isEmpty {
                    enqueue(endpoint)
                }
            }
        } else {
            registers.isCommandRingRunning = false
        }
    }

    private func servicePorts() {
        guard registers.work.contains(.ports) else { return }
        registers.work.remove(.ports)
        for port in hub.serviceRequests() { endTransfers(port: port) }
    }

    private func servicePortEvents() {
        while !interrupters[0].isCongested, let port = hub.takeSignal() {
            registers.status.insert(.portChange)
            interrupters[0].post(.portStatusChange(port: port + 1))
        }
    }

    /// The wrap of MFINDEX, every 2.048 s (xHCI 4.14.2).
    private func serviceMicroframes() -> Duration? {
        guard registers.command.contains(.wrapEventEnable) else { return nil }
        let wrap = registers.microframe(at: now) >> 14
        if wrap != lastWrap {
            lastWrap = wrap
            if !interrupters[0].isCongested { interrupters[0].post(.mfindexWrap) }
        }
        return registers.time(ofMicroframe: (wrap + 1) << 14)
    }

    func takeCompletions() {
        while !completing.isEmpty {
            let attachments = completing
            completing = []
            for attachment in attachments {
                for completion in attachment.takeCompletions() { take(completion) }
            }
        }
    }

    private func take(_ completion: Transfer.Completion) {
        let word = completion.id.rawValue
        guard let slot = slots[bounded: Int(word >> 8 & 0xff)],
            let endpoint = slot.endpoints[bounded: Int(word & 0x1f)]
        else { return }
        if let place = endpoint.abandoned.firstIndex(of: completion.id) {
            endpoint.abandoned.remove(at: place)
            return
        }
        guard
            let place = endpoint.inFlight.firstIndex(where: {
                $0.id == completion.id && $0.outcome == nil
            })
        else { return }
        endpoint.inFlight[place].outcome = .ended(
            completion.status, transferred: completion.transferred)
        enqueue(endpoint)
    }

    /// Transfer ids carry the endpoint that they belong to.
    func makeTransferID(_ endpoint: Endpoint) -> Transfer.ID {
        nextTransfer &+= 1
        return Transfer.ID(
            rawValue: nextTransfer << 16 | UInt64(endpoint.slot) << 8 | UInt64(endpoint.dci))
    }

    /// Has the endpoint looked at in this service.
    func enqueue(_ endpoint: Endpoint) {
        guard !endpoint.isQueued else { return }
        endpoint.isQueued = true
        queuedEndpoints.append(endpoint)
    }

    private func serviceDoorbells() {
        while let (id, endpoints) = registers.takeRungSlot() {
            guard let slot = slots[bounded: id] else { continue }
            for dci in 1..<32 where endpoints[bit: dci] {
                if let endpoint = slot.endpoints[dci] { ring(endpoint) }
            }
        }
    }
}

extension Array {
    /// The element, or `nil` outside of the array: for indices that come from the guest.
    subscript<Wrapped>(bounded index: Int) -> Wrapped? where Element == Wrapped? {
        indices.contains(index) ? self[index] : nil
    }
}
