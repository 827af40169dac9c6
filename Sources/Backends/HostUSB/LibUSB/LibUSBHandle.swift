// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import CLibUSB
internal import Platform
internal import USB

/// An opened host device. Its transfers go through libusb on the event loop, its blocking calls
/// through a ``SerialQueue``.
final class LibUSBHandle: HostHandle {
    /// libusb's handle of an opened device, which libusb allows any thread to use.
    @safe
    struct Pointer: @unchecked Sendable {
        let raw: OpaquePointer

        func close() { unsafe libusb_close(raw) }
    }

    /// An opened device whose node is locked.
    struct Opened: Sendable {
        let pointer: Pointer
        /// The lock; `nil` if another process has opened the node, whose descriptor then has the
        /// lock.
        var lock: DeviceNodeLock?
        /// Bytes of the longest OUT transfer that libusb submits as one request; see
        /// ``SystemFiles/longestRequest(of:)``.
        var longestRequest = Int.max
    }

    weak var observer: (any HostHandleObserver)?

    private let pointer: Pointer
    private let context: LibUSBContext
    private let control: DeviceControl
    /// The open device node, if another process has opened it; otherwise libusb owns the
    /// descriptor.
    private let node: ReceivedDescriptor?
    /// Excludes other servers and rules until the device is closed.
    private var lock: DeviceNodeLock?
    private let jobs: SerialQueue
    private let loop: any EventLoop
    private let longestRequest: Int
    private let memory = TransferMemory()
    private var active: [TransferSlot] = []
    private var idle: [TransferSlot] = []
    private let isochronous: IsochronousPipes
    /// Errors of isochronous submissions that have been reported.
    private var reportedErrors: Set<LibUSBError> = []
    /// Whether a guest may have changed the device.
    private var isUsed = false
    private var isClosing = false
    private var closesWhenIdle = false
    private(set) var isClosed = false
    /// Called once when the device is closed.
    var whenClosed: (() -> Void)?
    /// Whether a shutdown that blocked the loop timed out, so that the device stays open.
    private var isLeftOpen = false
    private var isReleasing = false
    private var shutDownCompletions: [(Bool) -> Void] = []
    private var shutDownTimeout: Watch?

    /// Takes ownership of an opened device. ``shutDown(by:completion:)``, ``shutDown(by:)`` or
    /// ``closeWhenIdle()`` closes it.
    init(
        _ opened: Opened, node: ReceivedDescriptor?, control: DeviceControl,
        context: LibUSBContext, jobs: SerialQueue, loop: any EventLoop
    ) {
        let pointer = opened.pointer
        self.pointer = pointer
        self.node = node
        lock = opened.lock
        longestRequest = opened.longestRequest
        self.control = control
        self.context = context
        self.jobs = jobs
        self.loop = loop
        let memory = memory
        isochronous = IsochronousPipes(loop: loop) { () throws(LibUSBError) in
            try IsochronousBatch(context: context, memory: memory)
        } submit: { (batch, transfers) throws(LibUSBError) in
            try batch.submit(transfers, on: pointer)
        }
        isochronous.whenEnded = { [weak self] transfer, completion in
            self?.observer?.transferEnded(transfer, with: completion)
            self?.closeIfIdle()
        }
        isochronous.whenRefused = { [weak self] error, bytes in self?.report(error, bytes: bytes) }
    }

    // MARK: - Transfers

    func submit(_ transfer: Transfer) -> SubmissionResult {
        guard !isClosing else { return .disconnected }
        isUsed = true
        if case .isochronous = transfer.kind {
            isochronous.start(transfer)
            return .started
        }
        do throws(LibUSBError) {
            let slot = try unusedSlot()
            do throws(LibUSBError) {
                try slot.submit(transfer, on: pointer)
            } catch {
                idle.append(slot)
                throw error
            }
            active.append(slot)
            return .started
        } catch {
            return switch error {
            case .noMemory: .noMemory
            case .noDevice: .disconnected
            default: .refused
            }
        }
    }

    /// Cancels a transfer. The kernel waits until the host's controller has released the transfer
    /// (`usb_kill_urb`). The device cannot delay this call, so it may run on the loop.
    func cancel(_ id: Transfer.ID) {
        if let slot = active.first(where: { $0.transfer?.id == id }) {
            slot.cancel()
        } else {
            _ = isochronous.cancel(id)
        }
    }

    /// Completes all transfers that have ended. libusb reaps a few requests in a pass, and a large
    /// transfer has many, so the passes are repeated until no cancelled transfer is left.
    func reap() {
        var passes = requestCount / Self.requestsPerPass + Self.sparePasses
        repeat {
            context.handleEvents()
            passes -= 1
        } while hasCancelled && passes > 0
    }

    /// Requests of one device that libusb reaps in a pass.
    private static let requestsPerPass = 26
    /// Passes in which libusb may handle other events.
    private static let sparePasses = 4

    /// The number of requests in flight, if libusb has cut each transfer into requests of 16 KiB.
    private var requestCount: Int {
        let buffers =
            active.compactMap(\.transfer?.buffer)
            + isochronous.batches.flatMap { $0.transfers.map(\.buffer) }
        return buffers.reduce(0) { $0 + $1.count / 0x4000 + 1 }
    }

    private var hasCancelled: Bool {
        active.contains(where: \.isCancelled) || isochronous.batches.contains(where: \.isCancelled)
    }

    /// Reports each error of isochronous submissions once.
    private func report(_ error: LibUSBError, bytes: Int) {
        guard error != .noDevice, reportedErrors.insert(error).inserted else { return }
        observer?.report(
            error == .noMemory
                ? Diagnosis.memoryLimit(bytes)
                : "the kernel refuses isochronous transfers: \(error)")
    }

    private func unusedSlot() throws(LibUSBError) -> TransferSlot {
        if let slot = idle.popLast() { return slot }
        let slot = try TransferSlot(
            context: context, memory: memory, longestRequest: longestRequest)
        slot.whenFinished = { [weak self] slot, transfer, completion in
            self?.slotFinished(slot, transfer, completion)
        }
        return slot
    }

    private func slotFinished(
        _ slot: TransferSlot, _ transfer: Transfer, _ completion: Transfer.Completion
    ) {
        if let index = active.firstIndex(where: { $0 === slot }) { active.remove(at: index) }
        idle.append(slot)
        observer?.transferEnded(transfer, with: completion)
        closeIfIdle()
    }

    // MARK: - Operations

    func run(
        _ operation: DeviceOperation, completion: @escaping (DeviceOperation.Outcome) -> Void
    ) {
        guard !isClosing else { return completion(.init(result: .disconnected)) }
        isUsed = true
        let control = control
        jobs.run {
            control.run(operation)
        } completion: { [weak self] outcome in
            completion(outcome)
            self?.closeIfIdle()
        }
    }

    // MARK: - Closing

    /// Closes a disconnected device once no transfer and no job is left.
    func closeWhenIdle() {
        isClosing = true
        closesWhenIdle = true
        cancelAll()
        closeIfIdle()
    }

    /// Cancels all transfers, releases the device to the host's drivers and closes it, without
    /// blocking the loop.
    ///
    /// - Parameter completion: called once on the loop, with `true` if the device was closed by
    ///   `deadline`. With `false`, the shutdown continues until the kernel and the device have
    ///   answered.
    func shutDown(by deadline: Duration, completion: @escaping (Bool) -> Void) {
        guard !isClosed && !isLeftOpen else { return completion(true) }
        shutDownCompletions.append(completion)
        shutDownTimeout = loop.schedule(at: deadline) { [weak self] in
            self?.completeShutDown(false)
        }
        isClosing = true
        cancelAll()
        reap()
        // `reap()` may have closed the device, if `closesWhenIdle` was set.
        guard !isClosed else { return }
        // Queues the release before it sets `closesWhenIdle`; otherwise the end of the last
        // transfer would close the device without the release.
        release()
        closesWhenIdle = true
        closeIfIdle()
    }

    private func completeShutDown(_ isInTime: Bool) {
        shutDownTimeout = nil
        let completions = shutDownCompletions
        shutDownCompletions = []
        for completion in completions { completion(isInTime) }
    }

    /// Queues the release to the host's drivers, once, after all earlier jobs.
    private func release() {
        guard !isReleasing && !isClosed else { return }
        isReleasing = true
        let control = control
        let isUsed = isUsed
        jobs.run {
            control.release(resetting: isUsed)
        } completion: { [self] _ in
            closeIfIdle()
        }
    }

    /// Cancels all transfers, releases the device to the host's drivers and closes it, blocking the
    /// loop.
    ///
    /// - Returns: `false` if the device is not closed by `deadline`. It then stays open, because a
    ///   thread or the kernel may still use it. The kernel cleans up when the process ends.
    func shutDown(by deadline: Duration) -> Bool {
        guard !isClosed && !isLeftOpen else { return true }
        shutDownCompletions = []
        shutDownTimeout = nil
        isClosing = true
        closesWhenIdle = false
        cancelAll()
        wait(until: deadline) { isIdle }
        release()
        wait(until: deadline) { control.isReleased }
        guard isIdle && control.isReleased else {
            isLeftOpen = true
            if let node = node?.take() { _ = node.release() }
            _ = unsafe Unmanaged.passRetained(context)
            return false
        }
        close()
        return true
    }

    /// Handles libusb's events while the loop is blocked, until a condition holds or `deadline`.
    private func wait(until deadline: Duration, for condition: () -> Bool) {
        while !condition() && loop.now < deadline {
            context.handleEvents(waiting: .milliseconds(10))
            jobs.checkForStall()
        }
    }

    private var isIdle: Bool { active.isEmpty && isochronous.isIdle }

    private func cancelAll() {
        // The newest first: the kernel would start each transfer whose predecessor is cancelled.
        for slot in active.reversed() { slot.cancel() }
        isochronous.cancelAll()
    }

    private func closeIfIdle() {
        if closesWhenIdle && !isClosed && isIdle && jobs.pendingJobs == 0 { close() }
    }

    private func close() {
        isClosed = true
        idle = []
        isochronous.close()
        memory.removeAll()
        control.close()
        _ = node?.take()
        lock = nil
        completeShutDown(true)
        whenClosed.take()?()
    }
}
