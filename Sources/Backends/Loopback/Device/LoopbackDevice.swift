// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import USB

/// The test device, which is gadget zero to Linux (docs/loopback.md).
///
/// In configuration 3 its endpoints are sources and sinks of a pattern. In configuration 2 the bulk
/// IN endpoint returns the data of the bulk OUT endpoint. Most transfers complete within
/// ``submit(_:)``. The others wait in the queue of their endpoint: for looped data, for space in
/// the loopback queue, or for the end of a fault.
final class LoopbackDevice: USBDevice {
    let speed: USBSpeed
    let summary: String
    /// Called when a fault disconnects the device, with the time after which to attach it again.
    var onDisconnect: ((Duration?) -> Void)?

    private let settings: LoopbackSettings
    private let loop: any EventLoop
    private weak var port: (any USBPort)?
    private var control: ControlRequests
    private let sourceSink: SourceSink
    private var loopback: PacketQueue
    private var faults = FaultPlan()
    private var log: DeviceLog
    /// The queues of the endpoints, indexed by the raw value of the pipe.
    private let queues = Pipe.allCases.map { _ in PipeQueue() }

    init(_ settings: LoopbackSettings, loop: any EventLoop, logger: Logger) {
        self.settings = settings
        self.loop = loop
        speed = settings.speed.speed
        summary = "loopback test device, \(settings.speed.rawValue) speed"
        control = ControlRequests(LoopbackDescriptors.description(settings))
        sourceSink = SourceSink(settings)
        loopback = PacketQueue(maxPacketSize: settings.bulkPacket)
        log = DeviceLog(device: summary, logger: logger)
    }

    // MARK: - USBDevice

    func attach(to port: any USBPort) {
        self.port = port
        log.reset()
        returnToDefaultState()
    }

    func detached() {
        port = nil
        for queue in queues { queue.removeAll() }
        returnToDefaultState()
    }

    func reset() {
        returnToDefaultState()
        for pipe in Pipe.allCases { completeAll(pipe, .cancelled) }
    }

    /// Resets everything except transfers and fault rules.
    private func returnToDefaultState() {
        control.reset()
        loopback.removeAll()
    }

    func submit(_ transfer: Transfer) {
        guard let pipe = Pipe(transfer.endpoint), control.has(pipe) else {
            complete(transfer, .failed)
            return
        }
        var pending = PendingTransfer(transfer: transfer)
        if queue(pipe).isIdle, process(&pending, pipe) {
            pumpLoopback(after: pipe)
            return
        }
        queue(pipe).transfers.append(pending)
        // A NAK fault may end when this transfer is queued.
        processQueue(pipe)
    }

    func cancel(_ id: Transfer.ID) {
        for pipe in Pipe.allCases {
            guard let (pending, wasFirst) = queue(pipe).remove(id) else { continue }
            complete(pending.transfer, .cancelled, pending.moved)
            if wasFirst {
                queue(pipe).cancelNAKTimer()
                processQueue(pipe)
            }
            return
        }
    }

    // MARK: - Queues

    private func queue(_ pipe: Pipe) -> PipeQueue { queues[pipe.rawValue] }

    /// Completes the waiting transfers of an endpoint, up to the first that must still wait.
    private func processQueue(_ pipe: Pipe) {
        completeReady(pipe)
        pumpLoopback(after: pipe)
    }

    private func completeReady(_ pipe: Pipe) {
        let queue = queue(pipe)
        while !queue.isPaused, var pending = queue.transfers.first {
            guard process(&pending, pipe) else {
                queue.transfers[0] = pending
                return
            }
            queue.transfers.removeFirst()
        }
    }

    /// Moves looped data until neither bulk endpoint makes progress: data in the loopback queue
    /// completes IN transfers, and free space completes OUT transfers.
    private func pumpLoopback(after pipe: Pipe) {
        guard pipe.isBulk, control.isLoopback else { return }
        var changes: UInt64
        repeat {
            changes = loopback.changes
            completeReady(.bulkIn)
            completeReady(.bulkOut)
        } while loopback.changes != changes
    }

    /// Completes a transfer unless it must wait.
    ///
    /// - Returns: whether the transfer is complete.
    private func process(_ pending: inout PendingTransfer, _ pipe: Pipe) -> Bool {
        let transfer = pending.transfer
        if control.isHalted(pipe) {
            complete(transfer, .stalled, pending.moved)
            return true
        }
        evaluateFaults(&pending, pipe)
        guard !isNAKed(pending, pipe) else { return false }
        switch pending.fault {
        case .stall:
            if pipe.canHalt { control.halt(pipe) }
            complete(transfer, .stalled)
        case .error:
            fail(transfer, .failed, pipe)
        case .babble:
            fail(transfer, .babbled, pipe)
        default:
            if case .control(let setup) = transfer.kind {
                answer(setup, transfer, pending.fault)
            } else if control.isLoopback {
                return loopBack(&pending, pipe)
            } else if pipe.isIn {
                let count = sourceSink.fill(transfer.buffer, at: pipe, pending.fault)
                complete(transfer, .completed, count)
            } else {
                sink(transfer, pipe, pending.fault)
            }
        }
        return true
    }

    private func completeAll(_ pipe: Pipe, _ status: Transfer.Status) {
        for pending in queue(pipe).removeAll() {
            complete(pending.transfer, status, pending.moved)
        }
    }

    private func complete(_ transfer: Transfer, _ status: Transfer.Status, _ count: Int = 0) {
        if let pipe = Pipe(transfer.endpoint) { faults.count(count, at: pipe) }
        port?.complete(transfer.completion(status, transferred: count))
    }

    // MARK: - Faults

    /// Replaces the fault rules, and ends all NAK faults of the old rules.
    func setFaults(_ rules: [FaultRule]) {
        faults = FaultPlan(rules)
        for pipe in Pipe.allCases {
            queue(pipe).endNAKs()
            processQueue(pipe)
        }
    }

    /// Evaluates the fault rules for a transfer, the first time it is processed.
    private func evaluateFaults(_ pending: inout PendingTransfer, _ pipe: Pipe) {
        guard !pending.isEvaluated else { return }
        pending.isEvaluated = true
        guard let fault = faults.fault(for: pending.transfer, at: pipe) else { return }
        log.fault(fault)
        pending.fault = fault.rule.action
        switch fault.rule.action {
        case .nak(until: .never): pending.nak = .forever
        case .nak(until: .queued(let count)): pending.nak = .queued(count)
        case .nak(until: .after(let time)):
            let end = loop.now + time
            pending.nak = .until(end)
            queue(pipe).timer = loop.schedule(at: end) { [weak self] in
                self?.processQueue(pipe)
            }
        case .disconnect(let reconnect):
            // The transfer is never completed; ``detached()`` removes it.
            pending.nak = .forever
            port?.disconnect()
            onDisconnect?(reconnect)
        default: break
        }
    }

    private func isNAKed(_ pending: PendingTransfer, _ pipe: Pipe) -> Bool {
        switch pending.nak {
        case nil: false
        case .forever: true
        case .queued(let count): queue(pipe).transfers.count <= count
        case .until(let time): loop.now < time
        }
    }

    /// Completes a transfer with an error for which the host halts the endpoint.
    ///
    /// The transfers behind it wait for one turn of the event loop, so that the host can cancel
    /// them.
    private func fail(_ transfer: Transfer, _ status: Transfer.Status, _ pipe: Pipe) {
        complete(transfer, status, status == .babbled ? transfer.buffer.count : 0)
        guard pipe.canHalt else { return }
        let queue = queue(pipe)
        queue.isPaused = true
        queue.timer = loop.schedule(at: loop.now) { [weak self] in
            self?.queue(pipe).isPaused = false
            self?.processQueue(pipe)
        }
    }

    // MARK: - Data

    /// Checks the data of an OUT transfer.
    ///
    /// A wrong byte halts the endpoint after the packet that contains it. The device stalls the
    /// transfer if it has further packets, otherwise the next transfer. Isochronous endpoints have
    /// no handshake and accept all data.
    private func sink(_ transfer: Transfer, _ pipe: Pipe, _ fault: FaultRule.Action?) {
        let count = transfer.buffer.count
        guard let mismatch = sourceSink.check(transfer.buffer, at: pipe, fault) else {
            complete(transfer, .completed, count)
            return
        }
        log.mismatch(mismatch, at: pipe, pattern: settings.pattern)
        guard pipe.canHalt else {
            complete(transfer, .completed, count)
            return
        }
        control.halt(pipe)
        let accepted = sourceSink.acceptedBytes(before: mismatch, of: count, at: pipe)
        complete(transfer, accepted < count ? .stalled : .completed, accepted)
    }

    /// Moves the data of a bulk transfer to or from the loopback queue.
    ///
    /// - Returns: whether the transfer is complete.
    private func loopBack(_ pending: inout PendingTransfer, _ pipe: Pipe) -> Bool {
        let buffer = pending.transfer.buffer
        var wrong: Int?
        if case .corrupt(let offset) = pending.fault { wrong = offset }
        let isComplete: Bool
        if pipe == .bulkIn {
            var limit = buffer.count
            if case .short(let bytes) = pending.fault { limit = min(limit, bytes) }
            isComplete = loopback.take(into: buffer, moved: &pending.moved, limit: limit)
            if isComplete, let wrong { buffer.invert(wrong, of: pending.moved) }
        } else {
            isComplete = loopback.put(buffer, moved: &pending.moved, inverting: wrong)
        }
        if isComplete { complete(pending.transfer, .completed, pending.moved) }
        return isComplete
    }

    // MARK: - Control transfers

    private func answer(
        _ setup: SetupPacket, _ transfer: Transfer, _ fault: FaultRule.Action?
    ) {
        if let bytes = faultyDescriptor(for: setup) {
            send(transfer.completion(sending: bytes, for: setup), transfer, fault)
            return
        }
        let (completion, change) = control.handle(transfer, setup)
        send(completion, transfer, fault)
        switch change {
        case .configuration, .alternateSetting:
            // The queued transfers belong to the previous configuration or alternate setting.
            loopback.removeAll()
            for pipe in Pipe.allCases where pipe != .control { completeAll(pipe, .failed) }
        case .haltSet(let endpoint), .haltCleared(let endpoint):
            if let pipe = Pipe(endpoint) { processQueue(pipe) }
        case nil: break
        }
    }

    /// Returns the faulty bytes of a requested descriptor, if a fault rule applies to it.
    private func faultyDescriptor(for setup: SetupPacket) -> [UInt8]? {
        guard let (subject, bytes) = control.descriptor(for: setup),
            let fault = faults.fault(for: subject),
            case .descriptor(let action) = fault.rule.action
        else { return nil }
        log.fault(fault)
        return action.apply(to: bytes, subject)
    }

    /// Completes a control transfer; a fault may shorten or corrupt its data.
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
            } else {
                control.invertStored(offset)
            }
        }
        complete(transfer, .completed, count)
    }
}
