// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import USB

/// A device of the host as the guest's controller sees it.
///
/// Transfers go to the kernel as they come and return in its order. A few control requests and the
/// port's reset change the device as a whole (``DeviceOperation``): while one is under way, the
/// transfers that it concerns wait here.
final class HostDevice: USBDevice, HostHandleObserver {
    /// A transfer that the kernel has, or that waits for an earlier one to end before its answer.
    private struct InFlight {
        let id: Transfer.ID
        var isCancelled = false
        var answer: Transfer.Completion?
    }

    /// One endpoint's transfers, oldest first.
    private struct Pipe {
        var inFlight: [InFlight] = []
        var waiting: [Transfer] = []
    }

    /// An operation that was begun, and the control transfer that asked for it, unless that is over.
    private struct Running {
        let operation: DeviceOperation
        var request: Transfer?
        var isStarted = false
    }

    /// A transfer for which the kernel has no memory, and since when nothing has changed about it.
    private struct Starvation {
        let id: Transfer.ID
        var since: Duration
    }

    /// How long a transfer waits for the kernel's memory while none is given back.
    static let longestStarvation = Duration.seconds(1)
    /// After which time it is tried again.
    static let starvationStep = Duration.milliseconds(20)
    /// A transfer up to this size gives back too little memory to be waited for.
    static let negligibleBytes = 4096

    let speed: USBSpeed
    let summary: String
    /// The host's bus has a clock of its own.
    let keepsIsochronousTime = true

    /// Called once when the device has left the host.
    var whenLost: (() -> Void)?

    /// What the guest must not be offered; set before the device is plugged in.
    var offer = GuestOffer()

    /// Whose endpoints are whose; set before the device is plugged in.
    var endpoints = InterfaceEndpoints(in: [])

    private let handle: any HostHandle
    private let loop: any EventLoop
    private let logger: Logger
    private weak var port: (any USBPort)?

    /// By number, IN sixteen after OUT; both directions of the control endpoint are the first.
    private var pipes = [Pipe](repeating: Pipe(), count: 32)
    private var waitingCount = 0

    private var running: Running?
    private var wantsReset = false
    /// Endpoints that are to have other numbers of streams, each once.
    private var streamChanges: [(endpoint: EndpointAddress, count: Int)] = []
    /// Whether the device may differ from one that was just reset. It does at first: the host's
    /// drivers have used it.
    private var isTouched = true
    private var isLost = false

    /// What was said in the log, each once.
    private var warnings: Set<String> = []

    private var starvation: Starvation?
    private var retry: Watch?

    init(
        _ handle: any HostHandle, speed: USBSpeed, summary: String, loop: any EventLoop,
        logger: Logger
    ) {
        self.handle = handle
        self.speed = speed
        self.summary = summary
        self.loop = loop
        self.logger = logger
        handle.observer = self
    }

    // MARK: - USBDevice

    func attach(to port: any USBPort) { self.port = port }

    func detached() {
        port = nil
        retry = nil
        starvation = nil
        endRequest(as: .cancelled)
        for place in pipes.indices {
            waitingCount -= pipes[place].waiting.count
            pipes[place].waiting = []
        }
        cancelInFlight()
    }

    func submit(_ transfer: Transfer) {
        guard !isLost else {
            port?.complete(transfer.completion(.disconnected))
            return
        }
        let place = Self.place(of: transfer.endpoint)
        if !pipes[place].waiting.isEmpty || isHeld(place) || !start(transfer, in: place) {
            pipes[place].waiting.append(transfer)
            waitingCount += 1
        }
    }

    func cancel(_ id: Transfer.ID) {
        if running?.request?.id == id {
            endRequest(as: .cancelled)
            // Changes of streams may have waited for it.
            advance()
            startWaiting()
            return
        }
        for place in pipes.indices {
            if let index = pipes[place].waiting.firstIndex(where: { $0.id == id }) {
                let transfer = pipes[place].waiting.remove(at: index)
                waitingCount -= 1
                if starvation?.id == id { starvation = nil }
                port?.complete(transfer.completion(.cancelled))
                startWaiting()
                return
            }
            if let index = pipes[place].inFlight.firstIndex(where: { $0.id == id }) {
                pipes[place].inFlight[index].isCancelled = true
                handle.cancel(id)
                // The kernel has ended the transfer, so its completion, with the bytes that arrived
                // until then, is fetched now.
                handle.reap()
                return
            }
        }
    }

    func reset() {
        endRequest(as: .cancelled)
        endWaiting(as: .cancelled)
        cancelInFlight()
        handle.reap()
        // Enumeration resets twice and only reads in between; the second is one too many.
        guard isTouched, !isLost else { return }
        streamChanges = []
        wantsReset = true
        advance()
    }

    /// Nothing is to be done. The data toggles of host and device agree with each other, whatever
    /// the guest's controller thinks of its own: they start afresh together with the guest's when
    /// the guest sets a configuration or an interface or clears a halt, which a driver that renews
    /// an endpoint must do for the device's sake.
    func resetEndpoint(_ endpoint: EndpointAddress) {}

    /// Gives an endpoint `count` streams on the host's side, or takes them away (0); its transfers
    /// wait meanwhile.
    func setStreams(_ count: Int, for endpoint: EndpointAddress) {
        guard !isLost else { return }
        streamChanges.removeAll { $0.endpoint == endpoint }
        streamChanges.append((endpoint, count))
        advance()
    }

    // MARK: - Starting

    private static func place(of endpoint: EndpointAddress) -> Int {
        endpoint.number == 0
            ? 0 : Int(endpoint.number) + (endpoint.direction == .in ? 16 : 0)
    }

    /// Whether an endpoint's transfers must wait for an operation.
    private func isHeld(_ place: Int) -> Bool {
        if wantsReset || streamChanges.contains(where: { Self.place(of: $0.endpoint) == place }) {
            return true
        }
        switch running?.operation {
        case nil: return false
        case .allocateStreams(let endpoint, _), .freeStreams(let endpoint):
            // A control request may be an operation itself, and there is one at a time.
            return place == 0 || place == Self.place(of: endpoint)
        case .clearHalt, .setConfiguration, .setInterface, .reset:
            // Also where it does not concern all endpoints, the kernel has the device locked until the
            // device has answered, which may take seconds, and who submits waits for that lock.
            // Cancelling waits for it as well, but must not be put off: the guest has its memory back
            // when it is told.
            return true
        }
    }

    /// Begins a transfer.
    ///
    /// - Returns: false if it has to wait for the kernel's memory.
    private func start(_ transfer: Transfer, in place: Int) -> Bool {
        switch transfer.kind {
        case .control(let setup):
            switch RequestRoute(setup) {
            case .forward:
                if !setup.isHarmless { isTouched = true }
                return hand(over: transfer, in: place)
            case .acknowledge:
                answer(transfer.completion(.completed, transferred: transfer.buffer.count), place)
            case .refuse:
                answer(transfer.completion(.stalled), place)
            case .operate(let operation):
                isTouched = true
                running = Running(operation: operation, request: transfer)
                cancelEnded(by: operation)
                advance()
            }
        case .bulk, .interrupt, .isochronous:
            isTouched = true
            return hand(over: transfer, in: place)
        }
        return true
    }

    private func hand(over transfer: Transfer, in place: Int) -> Bool {
        // Behind what has failed, the guest's endpoint halts as soon as it hears of that.
        if place != 0, pipes[place].inFlight.last?.answer != nil {
            answer(transfer.completion(.cancelled), place)
            return true
        }
        let submission = handle.submit(transfer)
        if submission != .noMemory && starvation?.id == transfer.id { starvation = nil }
        switch submission {
        case .started:
            pipes[place].inFlight.append(InFlight(id: transfer.id))
        case .refused:
            // A device stalls what it does not know; for a pipe that is not there is no such word.
            answer(transfer.completion(place == 0 ? .stalled : .failed), place)
            cancelWaiting(in: place)
        case .disconnected:
            port?.complete(transfer.completion(.disconnected))
            deviceLeft()
        case .noMemory:
            return !waitsForMemory(transfer, in: place)
        }
        return true
    }

    /// Answers a transfer that never reached the kernel, in its turn.
    private func answer(_ completion: Transfer.Completion, _ place: Int) {
        if pipes[place].inFlight.isEmpty {
            port?.complete(completion)
        } else {
            pipes[place].inFlight.append(InFlight(id: completion.id, answer: completion))
        }
    }

    /// Ends what waits behind a transfer that does not succeed: the guest's endpoint halts there.
    private func cancelWaiting(in place: Int) {
        guard place != 0 else { return }
        let waiting = pipes[place].waiting
        pipes[place].waiting = []
        waitingCount -= waiting.count
        for transfer in waiting {
            if starvation?.id == transfer.id { starvation = nil }
            answer(transfer.completion(.cancelled), place)
        }
    }

    /// Starts what waited, as far as nothing holds it.
    private func startWaiting() {
        guard waitingCount > 0 else { return }
        for place in pipes.indices {
            while !pipes[place].waiting.isEmpty && !isHeld(place) {
                let transfer = pipes[place].waiting.removeFirst()
                waitingCount -= 1
                if start(transfer, in: place) { continue }
                pipes[place].waiting.insert(transfer, at: 0)
                waitingCount += 1
                break
            }
        }
    }

    /// The kernel has no memory for a transfer. Each one that ends gives some back, and other
    /// programs draw on the same limit, so it is tried again for a while.
    private func waitsForMemory(_ transfer: Transfer, in place: Int) -> Bool {
        let starved = starvation ?? Starvation(id: transfer.id, since: loop.now)
        starvation = starved
        if starved.id == transfer.id && loop.now - starved.since >= Self.longestStarvation {
            starvation = nil
            warn(Diagnosis.memoryLimit(transfer.buffer.count))
            answer(transfer.completion(.failed), place)
            cancelWaiting(in: place)
            return false
        }
        retry = loop.schedule(at: loop.now + Self.starvationStep) { [weak self] in
            self?.startWaiting()
        }
        return true
    }

    // MARK: - Ending

    func transferEnded(_ transfer: Transfer, with completion: Transfer.Completion) {
        let place = Self.place(of: transfer.endpoint)
        guard let index = pipes[place].inFlight.firstIndex(where: { $0.id == transfer.id }) else {
            return
        }
        let entry = pipes[place].inFlight.remove(at: index)
        limitOffer(in: transfer, completion)
        if transfer.buffer.count > Self.negligibleBytes { starvation?.since = loop.now }
        var status = completion.status
        var isIsochronous = false
        if case .isochronous = transfer.kind { isIsochronous = true }
        if isLost {
            status = .disconnected
        } else if status == .cancelled && !entry.isCancelled && !isIsochronous {
            // The kernel took it back by itself: its interface was lost.
            status = .failed
        }
        port?.complete(
            Transfer.Completion(
                id: completion.id, status: status, transferred: completion.transferred))
        switch status {
        case .stalled, .babbled, .failed:
            // The guest's endpoint halts here, so nothing behind this transfer may still run. An
            // isochronous one never halts: what is lost is lost.
            if place != 0 && !isIsochronous {
                cancelInFlight(in: place)
                // What waits behind one that was cancelled itself has come later.
                if !entry.isCancelled { cancelWaiting(in: place) }
            }
        case .disconnected:
            deviceLeft()
        case .completed, .cancelled:
            break
        }
        while let answer = pipes[place].inFlight.first?.answer {
            pipes[place].inFlight.removeFirst()
            port?.complete(answer)
        }
        if running != nil || wantsReset || !streamChanges.isEmpty { advance() }
        startWaiting()
    }

    /// Changes descriptors of a configuration that the guest has asked for, before it is told that they
    /// are there.
    private func limitOffer(in transfer: Transfer, _ completion: Transfer.Completion) {
        guard case .control(let setup) = transfer.kind, setup.isHarmless,
            setup.getsConfiguration, completion.transferred > 0
        else { return }
        let bytes = transfer.buffer.bytes(count: completion.transferred)
        for (offset, value) in offer.changes(to: bytes) {
            transfer.buffer.copy(from: [value], at: offset)
        }
    }

    func noted(_ problem: String) { warn(problem) }

    /// Says something once: a guest may cause it again and again.
    private func warn(_ text: String) {
        guard warnings.count < HostUSBLimits.warningsLogged, warnings.insert(text).inserted else {
            return
        }
        logger.warning("\(summary): \(text)")
    }

    func deviceLeft() {
        guard !isLost else { return }
        isLost = true
        streamChanges = []
        retry = nil
        wantsReset = false
        endRequest(as: .disconnected)
        endWaiting(as: .disconnected)
        cancelInFlight()
        port?.disconnect()
        whenLost?()
    }

    /// Ends the request whose operation is under way. What has begun in the kernel runs on, and
    /// later transfers wait for it.
    private func endRequest(as status: Transfer.Status) {
        guard let request = running?.request else { return }
        running?.request = nil
        if running?.isStarted == false { running = nil }
        port?.complete(request.completion(status))
    }

    private func endWaiting(as status: Transfer.Status) {
        for place in pipes.indices {
            let waiting = pipes[place].waiting
            pipes[place].waiting = []
            waitingCount -= waiting.count
            for transfer in waiting { port?.complete(transfer.completion(status)) }
        }
        retry = nil
        starvation = nil
    }

    private func cancelInFlight() {
        for place in pipes.indices { cancelInFlight(in: place) }
    }

    /// Cancels an endpoint's transfers, the last first: the kernel would start each one that follows
    /// what is cancelled.
    private func cancelInFlight(in place: Int) {
        for index in pipes[place].inFlight.indices.reversed()
        where !pipes[place].inFlight[index].isCancelled {
            pipes[place].inFlight[index].isCancelled = true
            handle.cancel(pipes[place].inFlight[index].id)
        }
    }

    // MARK: - Operations

    /// Cancels the transfers of endpoints that an operation makes anew. The kernel would end them as
    /// if the device had left, or as if they had succeeded without data.
    private func cancelEnded(by operation: DeviceOperation) {
        for place in pipes.indices.dropFirst() where !pipes[place].inFlight.isEmpty {
            switch operation {
            case .setConfiguration: break
            case .setInterface(let interface, _):
                let endpoint = EndpointAddress(UInt8(place & 15), place < 16 ? .out : .in)
                guard endpoints.has(endpoint, interface: interface) else { continue }
            case .clearHalt, .reset, .allocateStreams, .freeStreams: return
            }
            cancelInFlight(in: place)
            cancelWaiting(in: place)
        }
    }

    /// Starts the operation that is due once the cancelled transfers it concerns have ended: the
    /// kernel would otherwise still carry them out, after a halt was cleared or in a device that
    /// was just reset.
    private func advance() {
        if running == nil && wantsReset {
            wantsReset = false
            running = Running(operation: .reset, request: nil)
        }
        if running == nil, !streamChanges.isEmpty {
            let change = streamChanges.removeFirst()
            running = Running(
                operation: change.count > 0
                    ? .allocateStreams(change.endpoint, count: change.count)
                    : .freeStreams(change.endpoint))
        }
        guard let next = running, !next.isStarted, !isLost else { return }
        let isWaiting = pipes.indices.contains { place in
            isHeld(place)
                && pipes[place].inFlight.contains { $0.isCancelled && $0.answer == nil }
        }
        if isWaiting { return }
        running?.isStarted = true
        handle.perform(next.operation) { [weak self] outcome in
            self?.operationEnded(outcome)
        }
    }

    private func operationEnded(_ outcome: DeviceOperation.Outcome) {
        guard let ended = running else { return }
        running = nil
        for warning in outcome.warnings { warn(warning) }
        for note in outcome.notes { logger.debug("\(summary): \(note)") }
        switch outcome.result {
        case .disconnected:
            if let request = ended.request { port?.complete(request.completion(.disconnected)) }
            deviceLeft()
            return
        case .done:
            if let request = ended.request { port?.complete(request.completion(.completed)) }
            if ended.operation == .reset { isTouched = false }
        case .refused:
            if let request = ended.request { port?.complete(request.completion(.stalled)) }
        }
        advance()
        startWaiting()
    }
}
