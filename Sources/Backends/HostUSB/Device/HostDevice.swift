// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import USB

/// A host device as a USB device of the guest's controller.
///
/// Transfers go to the kernel at once and complete in its order. Some control requests and the
/// reset of the port are operations on the whole device (``DeviceOperation``). While an operation
/// runs, the transfers that it blocks wait here.
final class HostDevice: USBDevice, HostHandleObserver {
    /// A transfer for which the kernel has no memory, and the time of the last release of memory.
    private struct MemoryWait {
        let id: Transfer.ID
        var since: Duration
    }

    /// The time that a transfer waits for memory of the kernel while none is freed.
    static let memoryTimeout = Duration.seconds(1)
    /// The time between two attempts to submit the transfer.
    static let memoryRetryDelay = Duration.milliseconds(20)
    /// The largest transfer whose end does not count as a release of memory, in bytes.
    static let negligibleBytes = 4096

    let speed: USBSpeed
    let summary: String
    /// `true`: the host's controller sends isochronous packets on its own clock.
    let keepsIsochronousTime = true

    /// Called once when the device has been disconnected from the host.
    var whenDisconnected: (() -> Void)?

    /// Filters descriptors for the guest; set before the device is attached.
    var descriptorFilter = DescriptorFilter()

    /// The endpoints of each interface; set before the device is attached.
    var endpoints = InterfaceEndpoints(in: [])

    private let handle: any HostHandle
    private let loop: any EventLoop
    private let logger: Logger
    private weak var port: (any USBPort)?

    /// The queues of the endpoints, by ``USB/EndpointAddress/index``.
    private var queues = [EndpointQueue](
        repeating: EndpointQueue(), count: EndpointAddress.indexCount)
    private var waitingCount = 0
    private var operations = OperationQueue()
    /// Whether the device's state may differ from that after a reset. Initially `true`, because the
    /// host's drivers have used the device.
    private var isModified = true
    private var isDisconnected = false

    /// Warnings that have been logged.
    private var warnings: Set<String> = []

    private var memoryWait: MemoryWait?
    private var memoryRetry: Watch?

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
        completeRequest(as: .cancelled)
        completeWaiting(as: .cancelled)
        cancelInFlight()
    }

    func submit(_ transfer: Transfer) {
        guard !isDisconnected else {
            port?.complete(transfer.completion(.disconnected))
            return
        }
        let index = transfer.endpoint.index
        if !queues[index].waiting.isEmpty || operations.blocks(index) || !start(transfer) {
            queues[index].waiting.append(transfer)
            waitingCount += 1
        }
    }

    func cancel(_ id: Transfer.ID) {
        if operations.isRequest(id) {
            completeRequest(as: .cancelled)
            // Stream changes may have waited for the operation.
            startNextOperation()
            startWaiting()
            return
        }
        for index in queues.indices {
            if let waiting = queues[index].waiting.firstIndex(where: { $0.id == id }) {
                let transfer = queues[index].waiting.remove(at: waiting)
                waitingCount -= 1
                if memoryWait?.id == id { memoryWait = nil }
                port?.complete(transfer.completion(.cancelled))
                startWaiting()
                return
            }
            if let inFlight = queues[index].inFlight.firstIndex(where: { $0.id == id }) {
                queues[index].inFlight[inFlight].isCancelled = true
                handle.cancel(id)
                // The kernel has ended the transfer. Reaping it now completes it with the bytes
                // that have moved.
                handle.reap()
                return
            }
        }
    }

    func reset() {
        completeRequest(as: .cancelled)
        completeWaiting(as: .cancelled)
        cancelInFlight()
        handle.reap()
        // Enumeration resets twice and only reads in between. The second reset is skipped.
        guard isModified, !isDisconnected else { return }
        operations.addReset()
        startNextOperation()
    }

    /// Does nothing, because the data toggles are those of the host's controller and the device.
    /// The kernel resets both together when the guest sets a configuration or an alternate setting
    /// or clears a halt. A guest's driver must make one of these requests to reset the device's
    /// toggle.
    func resetEndpoint(_ endpoint: EndpointAddress) {}

    /// Allocates `count` streams for an endpoint on the host; 0 frees them. The endpoint's
    /// transfers wait meanwhile.
    func setStreams(_ count: Int, for endpoint: EndpointAddress) {
        guard !isDisconnected else { return }
        operations.addStreamChange(to: count, for: endpoint)
        startNextOperation()
    }

    // MARK: - Submission

    /// Starts a transfer.
    ///
    /// - Returns: `false` if the transfer must wait for memory of the kernel.
    private func start(_ transfer: Transfer) -> Bool {
        switch transfer.kind {
        case .control(let setup):
            switch RequestRoute(setup) {
            case .forward:
                if !setup.onlyReads { isModified = true }
                return submitToKernel(transfer)
            case .acknowledge:
                complete(transfer, .completed, transferred: transfer.buffer.count)
            case .refuse:
                complete(transfer, .stalled)
            case .operate(let operation):
                isModified = true
                operations.begin(operation, for: transfer)
                cancelTransfers(endedBy: operation)
                startNextOperation()
            }
        case .bulk, .interrupt, .isochronous:
            isModified = true
            return submitToKernel(transfer)
        }
        return true
    }

    private func submitToKernel(_ transfer: Transfer) -> Bool {
        let index = transfer.endpoint.index
        // The guest's endpoint halts at a failed transfer, so nothing behind it may run.
        if index != 0, queues[index].inFlight.last?.completion != nil {
            complete(transfer, .cancelled)
            return true
        }
        let result = handle.submit(transfer)
        if result != .noMemory && memoryWait?.id == transfer.id { memoryWait = nil }
        switch result {
        case .started:
            queues[index].inFlight.append(.init(id: transfer.id))
        case .refused:
            // A device stalls control requests that it does not support. A transfer to a missing
            // endpoint is a transaction error.
            complete(transfer, index == 0 ? .stalled : .failed)
            cancelWaiting(in: index)
        case .disconnected:
            port?.complete(transfer.completion(.disconnected))
            deviceDisconnected()
        case .noMemory:
            return !waitForMemory(transfer)
        }
        return true
    }

    /// Completes a transfer that was not submitted to the kernel, after the endpoint's earlier
    /// ones.
    private func complete(_ transfer: Transfer, _ status: Transfer.Status, transferred: Int = 0) {
        let completion = transfer.completion(status, transferred: transferred)
        let index = transfer.endpoint.index
        if queues[index].inFlight.isEmpty {
            port?.complete(completion)
        } else {
            queues[index].inFlight.append(.init(id: completion.id, completion: completion))
        }
    }

    /// Cancels the waiting transfers behind a failed one, because the guest's endpoint halts.
    private func cancelWaiting(in index: Int) {
        guard index != 0 else { return }
        let waiting = queues[index].waiting
        queues[index].waiting = []
        waitingCount -= waiting.count
        for transfer in waiting {
            if memoryWait?.id == transfer.id { memoryWait = nil }
            complete(transfer, .cancelled)
        }
    }

    /// Starts the waiting transfers that no operation blocks.
    private func startWaiting() {
        guard waitingCount > 0 else { return }
        for index in queues.indices {
            while !queues[index].waiting.isEmpty && !operations.blocks(index) {
                let transfer = queues[index].waiting.removeFirst()
                waitingCount -= 1
                if start(transfer) { continue }
                queues[index].waiting.insert(transfer, at: 0)
                waitingCount += 1
                break
            }
        }
    }

    /// Schedules another attempt to submit a transfer for which the kernel has no memory. The timer
    /// is needed because other programs, under the same limit, may free memory.
    ///
    /// - Returns: `false` if the wait timed out and the transfer has been completed.
    private func waitForMemory(_ transfer: Transfer) -> Bool {
        let wait = memoryWait ?? MemoryWait(id: transfer.id, since: loop.now)
        memoryWait = wait
        if wait.id == transfer.id && loop.now - wait.since >= Self.memoryTimeout {
            memoryWait = nil
            warn(Diagnosis.memoryLimit(transfer.buffer.count))
            complete(transfer, .failed)
            cancelWaiting(in: transfer.endpoint.index)
            return false
        }
        memoryRetry = loop.schedule(at: loop.now + Self.memoryRetryDelay) { [weak self] in
            self?.startWaiting()
        }
        return true
    }

    // MARK: - Completion

    func transferEnded(_ transfer: Transfer, with completion: Transfer.Completion) {
        let index = transfer.endpoint.index
        let position = queues[index].inFlight.firstIndex { $0.id == transfer.id }
        guard let position else { return }
        let entry = queues[index].inFlight.remove(at: position)
        filterDescriptors(in: transfer, completion)
        if transfer.buffer.count > Self.negligibleBytes { memoryWait?.since = loop.now }
        var status = completion.status
        var isIsochronous = false
        if case .isochronous = transfer.kind { isIsochronous = true }
        if isDisconnected {
            status = .disconnected
        } else if status == .cancelled && !entry.isCancelled && !isIsochronous {
            // The kernel has cancelled the transfer, because its interface was released.
            status = .failed
        }
        port?.complete(
            Transfer.Completion(
                id: completion.id, status: status, transferred: completion.transferred))
        switch status {
        case .stalled, .babbled, .failed:
            // The guest's endpoint halts here, so nothing behind this transfer may still run. An
            // isochronous endpoint never halts.
            if index != 0 && !isIsochronous {
                cancelInFlight(in: index)
                // Transfers that wait behind a cancelled one were submitted after the cancellation.
                if !entry.isCancelled { cancelWaiting(in: index) }
            }
        case .disconnected:
            deviceDisconnected()
        case .completed, .cancelled:
            break
        }
        for completion in queues[index].takeCompletions() { port?.complete(completion) }
        if !operations.isEmpty { startNextOperation() }
        startWaiting()
    }

    /// Filters configuration descriptors that the guest has read, before the transfer's completion.
    private func filterDescriptors(in transfer: Transfer, _ completion: Transfer.Completion) {
        guard case .control(let setup) = transfer.kind, setup.getsConfiguration,
            completion.transferred > 0
        else { return }
        let bytes = transfer.buffer.bytes(count: completion.transferred)
        for (offset, value) in descriptorFilter.changes(to: bytes) {
            transfer.buffer.copy(from: [value], at: offset)
        }
    }

    func report(_ problem: String) { warn(problem) }

    /// Logs a warning once, because a guest may cause it any number of times.
    private func warn(_ text: String) {
        guard warnings.count < HostUSBLimits.warningsLogged, warnings.insert(text).inserted else {
            return
        }
        logger.warning("\(summary): \(text)")
    }

    func deviceDisconnected() {
        guard !isDisconnected else { return }
        isDisconnected = true
        operations.removeQueued()
        completeRequest(as: .disconnected)
        completeWaiting(as: .disconnected)
        cancelInFlight()
        port?.disconnect()
        whenDisconnected?()
    }

    /// Completes the request of the current operation. An operation that the kernel has begun goes
    /// on, and later transfers wait for it.
    private func completeRequest(as status: Transfer.Status) {
        guard let request = operations.takeRequest() else { return }
        port?.complete(request.completion(status))
    }

    private func completeWaiting(as status: Transfer.Status) {
        for index in queues.indices {
            let waiting = queues[index].waiting
            queues[index].waiting = []
            waitingCount -= waiting.count
            for transfer in waiting { port?.complete(transfer.completion(status)) }
        }
        memoryRetry = nil
        memoryWait = nil
    }

    private func cancelInFlight() {
        for index in queues.indices { cancelInFlight(in: index) }
    }

    /// Cancels an endpoint's transfers, newest first: the kernel would start a transfer whose
    /// predecessor is cancelled.
    private func cancelInFlight(in index: Int) {
        for position in queues[index].inFlight.indices.reversed()
        where !queues[index].inFlight[position].isCancelled {
            queues[index].inFlight[position].isCancelled = true
            handle.cancel(queues[index].inFlight[position].id)
        }
    }

    // MARK: - Operations

    /// Cancels the transfers of the endpoints that an operation sets up again. The kernel would end
    /// them as if the device had disconnected, or as if they had succeeded without data.
    private func cancelTransfers(endedBy operation: DeviceOperation) {
        for index in queues.indices.dropFirst() where !queues[index].inFlight.isEmpty {
            switch operation {
            case .setConfiguration: break
            case .setInterface(let interface, _):
                guard endpoints.has(EndpointAddress(index: index), interface: interface) else {
                    continue
                }
            case .clearHalt, .reset, .allocateStreams, .freeStreams: return
            }
            cancelInFlight(in: index)
            cancelWaiting(in: index)
        }
    }

    /// Starts the next operation, if the cancelled transfers of the endpoints that it blocks have
    /// ended. The kernel might otherwise execute them after the halt is cleared or the device is
    /// reset.
    private func startNextOperation() {
        guard let operation = operations.next(), !isDisconnected,
            !queues.indices.contains(where: { operations.blocks($0) && queues[$0].hasCancelled })
        else { return }
        operations.startCurrent()
        handle.run(operation) { [weak self] outcome in
            self?.operationEnded(outcome)
        }
    }

    private func operationEnded(_ outcome: DeviceOperation.Outcome) {
        guard let (operation, request) = operations.endCurrent() else { return }
        for warning in outcome.warnings { warn(warning) }
        for detail in outcome.details { logger.debug("\(summary): \(detail)") }
        switch outcome.result {
        case .disconnected:
            if let request { port?.complete(request.completion(.disconnected)) }
            deviceDisconnected()
            return
        case .done:
            if let request { port?.complete(request.completion(.completed)) }
            if operation == .reset { isModified = false }
        case .refused:
            if let request { port?.complete(request.completion(.stalled)) }
        }
        startNextOperation()
        startWaiting()
    }
}
