// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import USB

/// A device that does what it is asked: in one configuration it gives and takes patterned data on
/// endpoints of each kind, in the other what comes OUT goes back IN.
///
/// Nearly every transfer is answered while it is submitted. What cannot be waits at its endpoint, in
/// order.
final class LoopbackDevice: USBDevice {
    let speed: USBSpeed
    let summary: String

    private let settings: LoopbackSettings
    private let loop: any EventLoop
    private let logger: Logger
    private weak var port: (any USBPort)?
    private var controlPipe: DefaultControlPipe
    /// By the raw value of the pipe.
    private var pipes = Pipe.allCases.map { _ in PipeState() }
    private var queue: PacketQueue
    /// What vendor's request 0x5b left for 0x5c.
    private var scratch: [UInt8] = []
    private var wrongBytes = 0
    private var plan = FaultPlan()
    /// Called when a fault unplugs the device, with the time after which it comes back.
    var onDisconnect: ((Duration?) -> Void)?

    private let bulkPattern: DataPattern
    private let interruptPattern: DataPattern
    private let isoPattern: DataPattern

    init(_ settings: LoopbackSettings, loop: any EventLoop, logger: Logger) {
        self.settings = settings
        self.loop = loop
        self.logger = logger
        speed = settings.speed.speed
        summary = "loopback test device, \(settings.speed.rawValue) speed"
        controlPipe = DefaultControlPipe(LoopbackDescriptors.description(settings))
        queue = PacketQueue(maxPacketSize: settings.bulkPacket)
        bulkPattern = DataPattern(settings.pattern, maxPacketSize: settings.bulkPacket)
        interruptPattern = DataPattern(settings.pattern, maxPacketSize: settings.interruptPacket)
        isoPattern = DataPattern(settings.pattern, maxPacketSize: settings.isoPacket)
    }

    // MARK: - USBDevice

    func attach(to port: any USBPort) {
        self.port = port
        wrongBytes = 0
        restart()
    }

    func detached() {
        port = nil
        for index in pipes.indices { pipes[index] = PipeState() }
        restart()
    }

    func reset() {
        restart()
        for pipe in Pipe.allCases { endAll(pipe, .cancelled) }
    }

    /// As just plugged in, but for the transfers.
    private func restart() {
        controlPipe.reset()
        queue.removeAll()
        scratch = []
    }

    func submit(_ transfer: Transfer) {
        guard let pipe = Pipe(transfer.endpoint), exists(pipe) else {
            complete(transfer, .failed)
            return
        }
        var pending = PendingTransfer(transfer: transfer)
        if canAttempt(pipe), attempt(&pending, pipe) {
            moveLooped(after: pipe)
            return
        }
        pipes[pipe.rawValue].waiting.append(pending)
        // One that waits for others to come may have waited for this one.
        resume(pipe)
    }

    func cancel(_ id: Transfer.ID) {
        for pipe in Pipe.allCases {
            guard
                let place = pipes[pipe.rawValue].waiting.firstIndex(where: { $0.transfer.id == id })
            else { continue }
            let pending = pipes[pipe.rawValue].waiting.remove(at: place)
            complete(pending.transfer, .cancelled, pending.moved)
            if place == 0 {
                if !pipes[pipe.rawValue].isPaused { pipes[pipe.rawValue].timer = nil }
                resume(pipe)
            }
            return
        }
    }

    // MARK: - Endpoints

    private var isLoopback: Bool { controlPipe.configuration == LoopbackDescriptors.loopback }

    /// Whether the present configuration and setting have the endpoint.
    private func exists(_ pipe: Pipe) -> Bool {
        switch pipe {
        case .control: true
        case .bulkIn, .bulkOut: controlPipe.configuration != 0
        default:
            controlPipe.configuration == LoopbackDescriptors.sourceSink
                && controlPipe.alternateSetting(ofInterface: 0) == 1
        }
    }

    private func canAttempt(_ pipe: Pipe) -> Bool {
        pipes[pipe.rawValue].waiting.isEmpty && !pipes[pipe.rawValue].isPaused
    }

    /// Answers what waits at an endpoint, as far as that is possible now.
    private func advance(_ pipe: Pipe) {
        while !pipes[pipe.rawValue].isPaused, var pending = pipes[pipe.rawValue].waiting.first {
            guard attempt(&pending, pipe) else {
                pipes[pipe.rawValue].waiting[0] = pending
                return
            }
            pipes[pipe.rawValue].waiting.removeFirst()
        }
    }

    private func resume(_ pipe: Pipe) {
        advance(pipe)
        moveLooped(after: pipe)
    }

    /// What went into the queue may be what an IN transfer waits for; what left it makes room.
    private func moveLooped(after pipe: Pipe) {
        guard pipe.isBulk, isLoopback else { return }
        var changes: UInt64
        repeat {
            changes = queue.changes
            advance(.bulkIn)
            advance(.bulkOut)
        } while queue.changes != changes
    }

    /// - Returns: whether the transfer has been answered.
    private func attempt(_ pending: inout PendingTransfer, _ pipe: Pipe) -> Bool {
        let transfer = pending.transfer
        if pipe != .control, !pipe.isIsochronous, controlPipe.isHalted(pipe.address) {
            complete(transfer, .stalled, pending.moved)
            return true
        }
        guard !isHeld(&pending, pipe) else { return false }
        switch pending.fault {
        case .stall:
            if pipe != .control { controlPipe.halt(pipe.address) }
            complete(transfer, .stalled)
        case .error:
            fail(transfer, .failed, pipe)
        case .babble:
            fail(transfer, .babbled, pipe)
        default:
            if case .control(let setup) = transfer.kind {
                answer(setup, transfer, pending.fault)
            } else if isLoopback {
                return loopBack(&pending, pipe)
            } else if pipe.isIn {
                source(transfer, pipe, pending.fault)
            } else {
                sink(transfer, pipe, pending.fault)
            }
        }
        return true
    }

    // MARK: - Faults

    /// Replaces the rules. What an old one holds back is answered.
    func setFaults(_ rules: [FaultRule]) {
        plan = FaultPlan(rules)
        for pipe in Pipe.allCases {
            for index in pipes[pipe.rawValue].waiting.indices {
                pipes[pipe.rawValue].waiting[index].hold = nil
            }
            if !pipes[pipe.rawValue].isPaused { pipes[pipe.rawValue].timer = nil }
            resume(pipe)
        }
    }

    /// Asks the rules about a transfer once, and whether it still has to wait.
    private func isHeld(_ pending: inout PendingTransfer, _ pipe: Pipe) -> Bool {
        if !pending.isJudged {
            pending.isJudged = true
            if let fault = plan.fault(for: pending.transfer, at: pipe) {
                tell(fault)
                pending.fault = fault.rule.action
                begin(fault.rule.action, &pending, pipe)
            }
        }
        switch pending.hold {
        case nil: return false
        case .forever: return true
        case .queued(let count): return pipes[pipe.rawValue].waiting.count <= count
        case .until(let time): return loop.now < time
        }
    }

    private func begin(
        _ action: FaultRule.Action, _ pending: inout PendingTransfer, _ pipe: Pipe
    ) {
        switch action {
        case .hold(.forever): pending.hold = .forever
        case .hold(.queued(let count)): pending.hold = .queued(count)
        case .hold(.time(let time)):
            let end = loop.now + time
            pending.hold = .until(end)
            pipes[pipe.rawValue].timer = loop.schedule(at: end) { [weak self] in
                self?.resume(pipe)
            }
        case .disconnect(let reconnect):
            // Nobody answers it; it is dropped with the port.
            pending.hold = .forever
            port?.disconnect()
            onDisconnect?(reconnect)
        default: break
        }
    }

    /// Ends a transfer so that the host halts the endpoint, and gives the host the time to take back
    /// what it has submitted behind it.
    private func fail(_ transfer: Transfer, _ status: Transfer.Status, _ pipe: Pipe) {
        complete(transfer, status, status == .babbled ? transfer.buffer.count : 0)
        guard pipe != .control, !pipe.isIsochronous else { return }
        pipes[pipe.rawValue].isPaused = true
        pipes[pipe.rawValue].timer = loop.schedule(at: loop.now) { [weak self] in
            self?.pipes[pipe.rawValue].isPaused = false
            self?.resume(pipe)
        }
    }

    private func tell(_ fault: FaultPlan.Fault) {
        let level: Logger.Level = fault.count > LoopbackLimits.faultsLogged ? .debug : .notice
        logger.log(
            level: level,
            "\(summary): fault '\(fault.rule.text)' at number \(fault.transfer): the host sees \(fault.rule.effect)"
        )
    }

    // MARK: - Data

    private func pattern(_ pipe: Pipe) -> DataPattern {
        switch pipe {
        case .interruptIn, .interruptOut: interruptPattern
        case .isoIn, .isoOut: isoPattern
        default: bulkPattern
        }
    }

    /// There is always as much as is asked for, on an isochronous endpoint what an interval holds.
    private func source(_ transfer: Transfer, _ pipe: Pipe, _ fault: FaultRule.Action?) {
        var count = transfer.buffer.count
        if pipe == .isoIn { count = min(count, settings.isoBytesPerInterval) }
        if case .short(let bytes) = fault { count = min(count, bytes) }
        pattern(pipe).fill(transfer.buffer, count: count)
        if case .corrupt(let offset) = fault { transfer.buffer.invert(offset, of: count) }
        complete(transfer, .completed, count)
    }

    /// Takes everything. The packet with a wrong byte is the last before the endpoint halts: if it is
    /// the transfer's last too, only the next one meets the stall.
    private func sink(_ transfer: Transfer, _ pipe: Pipe, _ fault: FaultRule.Action?) {
        let count = transfer.buffer.count
        let pattern = pattern(pipe)
        var wrong = pattern.firstDifference(in: transfer.buffer)
        if wrong == nil, pattern.isChecked, case .corrupt(let offset) = fault, offset < count {
            wrong = (offset, ~(transfer.buffer.bytes(from: offset, count: 1).first ?? 0))
        }
        guard let wrong else {
            complete(transfer, .completed, count)
            return
        }
        tell(wrong, pipe)
        // Isochronous transfers have no handshake, so they cannot be refused.
        guard !pipe.isIsochronous else {
            complete(transfer, .completed, count)
            return
        }
        controlPipe.halt(pipe.address)
        let packet = pipe == .bulkOut ? settings.bulkPacket : settings.interruptPacket
        let accepted = min(count, (wrong.offset / packet + 1) * packet)
        complete(transfer, accepted < count ? .stalled : .completed, accepted)
    }

    /// What comes OUT goes back IN.
    ///
    /// - Returns: whether the transfer has been answered.
    private func loopBack(_ pending: inout PendingTransfer, _ pipe: Pipe) -> Bool {
        let buffer = pending.transfer.buffer
        var wrong: Int?
        if case .corrupt(let offset) = pending.fault { wrong = offset }
        let isDone: Bool
        if pipe == .bulkIn {
            var limit = buffer.count
            if case .short(let bytes) = pending.fault { limit = min(limit, bytes) }
            isDone = queue.take(into: buffer, moved: &pending.moved, limit: limit)
            if isDone, let wrong { buffer.invert(wrong, of: pending.moved) }
        } else {
            isDone = queue.put(buffer, moved: &pending.moved, inverting: wrong)
        }
        if isDone { complete(pending.transfer, .completed, pending.moved) }
        return isDone
    }

    private func tell(_ wrong: (offset: Int, byte: UInt8), _ pipe: Pipe) {
        wrongBytes += 1
        let level: Logger.Level = wrongBytes > LoopbackLimits.wrongBytesLogged ? .debug : .notice
        let consequence = pipe.isIsochronous ? "" : ": the endpoint halts"
        logger.log(
            level: level,
            "\(summary): byte \(wrong.offset) of a transfer to \(pipe.address.hexadecimal) is \(wrong.byte), which is not the pattern '\(settings.pattern.rawValue)'\(consequence)"
        )
    }

    /// Ends all that waits at an endpoint.
    private func endAll(_ pipe: Pipe, _ status: Transfer.Status) {
        let waiting = pipes[pipe.rawValue].waiting
        pipes[pipe.rawValue] = PipeState()
        for pending in waiting { complete(pending.transfer, status, pending.moved) }
    }

    private func complete(_ transfer: Transfer, _ status: Transfer.Status, _ count: Int = 0) {
        if let pipe = Pipe(transfer.endpoint) { plan.count(count, at: pipe) }
        port?.complete(transfer.completion(status, transferred: count))
    }

    // MARK: - Control pipe

    private func answer(
        _ setup: SetupPacket, _ transfer: Transfer, _ fault: FaultRule.Action?
    ) {
        if let completion = answerWrongly(setup, transfer) {
            send(completion, transfer, fault)
            return
        }
        switch controlPipe.handle(transfer, setup) {
        case .answered(let completion, let change):
            send(completion, transfer, fault)
            switch change {
            case .configuration, .alternateSetting:
                // The endpoints that transfers were for are others now.
                queue.removeAll()
                for pipe in Pipe.allCases where pipe != .control { endAll(pipe, .failed) }
            case .haltSet(let endpoint), .haltCleared(let endpoint):
                if let pipe = Pipe(endpoint) { resume(pipe) }
            case nil: break
            }
        case .forDevice: send(answerVendor(setup, transfer), transfer, fault)
        }
    }

    /// Hands an answer to the host, or what a fault leaves of it.
    private func send(
        _ completion: Transfer.Completion, _ transfer: Transfer, _ fault: FaultRule.Action?
    ) {
        guard completion.status == .completed else {
            port?.complete(completion)
            return
        }
        var count = completion.transferred
        if case .short(let bytes) = fault { count = min(count, bytes) }
        if case .corrupt(let offset) = fault {
            if transfer.direction == .in {
                transfer.buffer.invert(offset, of: count)
            } else if scratch.indices.contains(offset) {
                scratch[offset] = ~scratch[offset]
            }
        }
        complete(transfer, .completed, count)
    }

    /// The answer to a request for a descriptor that is to be wrong.
    private func answerWrongly(
        _ setup: SetupPacket, _ transfer: Transfer
    ) -> Transfer.Completion? {
        let type = DescriptorType(rawValue: UInt8(truncatingIfNeeded: setup.value >> 8))
        guard setup.requestType == 0x80, setup.request == 6,
            let subject = DescriptorFault.Subject.allCases.first(where: { $0.type == type }),
            let bytes = controlPipe.description.descriptor(
                type, index: UInt8(truncatingIfNeeded: setup.value)),
            let fault = plan.fault(for: subject),
            case .descriptor(let action) = fault.rule.action
        else { return nil }
        tell(fault)
        return transfer.completion(sending: action.apply(to: bytes, subject), for: setup)
    }

    /// The two requests of test devices: 0x5b leaves bytes with the device, 0x5c fetches them.
    private func answerVendor(
        _ setup: SetupPacket, _ transfer: Transfer
    ) -> Transfer.Completion {
        guard setup.kind == .vendor, setup.recipient == .device, setup.value == 0,
            setup.index == 0
        else { return transfer.completion(.stalled) }
        switch (setup.request, setup.direction) {
        case (0x5b, .out):
            scratch = transfer.buffer.bytes()
            return transfer.completion(.completed, transferred: scratch.count)
        case (0x5c, .in):
            return transfer.completion(sending: scratch, for: setup)
        default:
            return transfer.completion(.stalled)
        }
    }
}

extension TransferBuffer {
    /// Inverts the byte at `offset`, if it is among the first `count`.
    fileprivate func invert(_ offset: Int, of count: Int) {
        guard offset < count, let byte = bytes(from: offset, count: 1).first else { return }
        copy(from: [~byte], at: offset)
    }
}

extension EndpointAddress {
    /// As `lsusb` and kernels write it.
    var hexadecimal: String {
        "0x" + (rawValue < 0x10 ? "0" : "") + String(rawValue, radix: 16)
    }
}
