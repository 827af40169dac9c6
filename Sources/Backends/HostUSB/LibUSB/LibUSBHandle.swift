// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import CLibUSB
internal import Platform
internal import USB

/// An opened device: its transfers through libusb, its blocking calls on a thread of their own.
final class LibUSBHandle: HostHandle {
    /// libusb's opened device. libusb allows its use from any thread.
    @safe
    struct Pointer: @unchecked Sendable {
        let raw: OpaquePointer

        func close() { unsafe libusb_close(raw) }
    }

    /// A device that is open and kept.
    struct Opened: Sendable {
        let pointer: Pointer
        /// Missing where somebody else has opened the node: the lock is on that opening.
        var mark: DeviceNodeLock?
        /// Bytes of the longest OUT transfer that libusb submits as one request; see
        /// ``SystemFiles/longestRequest(of:)``.
        var longestRequest = Int.max
    }

    weak var observer: (any HostHandleObserver)?

    private let pointer: Pointer
    private let context: LibUSBContext
    private let control: DeviceControl
    /// The open device node, if somebody else opened it; otherwise libusb has it.
    private let node: ReceivedDescriptor?
    /// What keeps others away; given up with the device.
    private var mark: DeviceNodeLock?
    private let worker: Worker
    private let loop: any EventLoop
    private let longestRequest: Int
    private let memory = TransferMemory()
    private var active: [TransferSlot] = []
    private var idle: [TransferSlot] = []
    private let isochronous: IsochronousPipes
    /// What was said of the kernel's refusals, so that it is not said for each of many transfers.
    private var refusals: Set<LibUSBError> = []
    /// Whether a guest may have left its traces in the device.
    private var isUsed = false
    private var isClosing = false
    private var closesWhenIdle = false
    private(set) var isClosed = false
    /// Called once when it is.
    var whenClosed: (() -> Void)?
    private var isAbandoned = false
    private var isGivingBack = false
    /// Who waits for the end, and until when.
    private var whenShutDown: [(Bool) -> Void] = []
    private var overdue: Watch?

    /// Takes over an opened device, which is closed by one of ``shutDown(by:then:)``,
    /// ``shutDown(by:)`` and ``closeWhenIdle()``.
    init(
        _ opened: Opened, node: ReceivedDescriptor?, control: DeviceControl,
        context: LibUSBContext, worker: Worker, loop: any EventLoop
    ) {
        let pointer = opened.pointer
        self.pointer = pointer
        self.node = node
        mark = opened.mark
        longestRequest = opened.longestRequest
        self.control = control
        self.context = context
        self.worker = worker
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
        isochronous.whenRefused = { [weak self] error, bytes in self?.note(error, bytes: bytes) }
    }

    func submit(_ transfer: Transfer) -> HostSubmission {
        guard !isClosing else { return .disconnected }
        isUsed = true
        if case .isochronous = transfer.kind {
            isochronous.start(transfer)
            return .started
        }
        do throws(LibUSBError) {
            let slot = try freeSlot()
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

    /// Cancels a transfer in the kernel, which waits until the host's controller has let go of it
    /// (`usb_kill_urb`). That depends on no device, so it is done here, and not on the worker.
    func cancel(_ id: Transfer.ID) {
        if let slot = active.first(where: { $0.transfer?.id == id }) {
            slot.cancel()
        } else {
            _ = isochronous.cancel(id)
        }
    }

    /// Fetches the completions of cancelled transfers. libusb takes some requests at a time, and makes
    /// many of a large transfer.
    func reap() {
        var rounds = requestCount / Self.requestsReaped + Self.spareRounds
        repeat {
            context.handleEvents()
            rounds -= 1
        } while hasCancelled && rounds > 0
    }

    /// How many requests libusb takes back at a time.
    private static let requestsReaped = 26
    /// Times that it may be busy with something else.
    private static let spareRounds = 4

    /// How many requests libusb has made, at most, of what is in flight.
    private var requestCount: Int {
        let buffers =
            active.compactMap(\.transfer?.buffer)
            + isochronous.batches.flatMap { $0.transfers.map(\.buffer) }
        return buffers.reduce(0) { $0 + $1.count / 0x4000 + 1 }
    }

    private var hasCancelled: Bool {
        active.contains(where: \.isCancelled) || isochronous.batches.contains(where: \.isCancelled)
    }

    /// Says once of each kind why isochronous transfers are not taken.
    private func note(_ error: LibUSBError, bytes: Int) {
        guard error != .noDevice, refusals.insert(error).inserted else { return }
        observer?.noted(
            error == .noMemory
                ? Diagnosis.memoryLimit(bytes) : "isochronous transfers are refused: \(error)")
    }

    func perform(
        _ operation: DeviceOperation, then completion: @escaping (DeviceOperation.Outcome) -> Void
    ) {
        guard !isClosing else { return completion(.init(result: .disconnected)) }
        isUsed = true
        let control = control
        worker.run {
            control.perform(operation)
        } completion: { [weak self] outcome in
            completion(outcome)
            self?.closeIfIdle()
        }
    }

    private func freeSlot() throws(LibUSBError) -> TransferSlot {
        if let slot = idle.popLast() { return slot }
        let slot = try TransferSlot(
            context: context, memory: memory, longestRequest: longestRequest)
        slot.whenFinished = { [weak self] slot, transfer, completion in
            self?.finished(slot, transfer, completion)
        }
        return slot
    }

    private func finished(
        _ slot: TransferSlot, _ transfer: Transfer, _ completion: Transfer.Completion
    ) {
        if let place = active.firstIndex(where: { $0 === slot }) { active.remove(at: place) }
        idle.append(slot)
        observer?.transferEnded(transfer, with: completion)
        closeIfIdle()
    }

    // MARK: - The end

    /// Closes a device that is gone, once the kernel has given everything back.
    func closeWhenIdle() {
        isClosing = true
        closesWhenIdle = true
        cancelAll()
        closeIfIdle()
    }

    /// Ends all transfers, gives the device back to the host's drivers and closes it, while the loop
    /// goes on.
    ///
    /// - Parameter done: called once on the loop, with whether all of that was done by `deadline`. What
    ///   was not goes on, and ends when the kernel and the device let it.
    func shutDown(by deadline: Duration, then done: @escaping (Bool) -> Void) {
        guard !isClosed && !isAbandoned else { return done(true) }
        whenShutDown.append(done)
        overdue = loop.schedule(at: deadline) { [weak self] in self?.reportShutDown(false) }
        isClosing = true
        cancelAll()
        reap()
        // It may have been about to be closed, as one that is gone.
        guard !isClosed else { return }
        // Not before the worker has its job: the end of the last transfer closes the device else.
        giveBack()
        closesWhenIdle = true
        closeIfIdle()
    }

    private func reportShutDown(_ isDone: Bool) {
        overdue = nil
        let waiting = whenShutDown
        whenShutDown = []
        for done in waiting { done(isDone) }
    }

    /// Has the worker give the device back, once, after all that it has been told before.
    private func giveBack() {
        guard !isGivingBack && !isClosed else { return }
        isGivingBack = true
        let control = control
        let isUsed = isUsed
        // What is waited for must not go away meanwhile.
        worker.run {
            control.giveBack(resetting: isUsed)
        } completion: { [self] _ in
            closeIfIdle()
        }
    }

    /// Ends all transfers, gives the device back to the host's drivers and closes it, with the loop
    /// standing still.
    ///
    /// - Returns: whether all of that was done by `deadline`. What was not is left open for good: the
    ///   kernel may still write to memory of ours, and cleans up when the process ends.
    func shutDown(by deadline: Duration) -> Bool {
        guard !isClosed && !isAbandoned else { return true }
        whenShutDown = []
        overdue = nil
        isClosing = true
        closesWhenIdle = false
        cancelAll()
        while !isIdle && loop.now < deadline {
            context.handleEvents(waiting: .milliseconds(10))
        }
        giveBack()
        while !control.isGivenBack && loop.now < deadline {
            context.handleEvents(waiting: .milliseconds(10))
        }
        guard isIdle && control.isGivenBack else {
            isAbandoned = true
            if let node = node?.take() { _ = node.release() }
            _ = unsafe Unmanaged.passRetained(context)
            return false
        }
        close()
        return true
    }

    private var isIdle: Bool { active.isEmpty && isochronous.isIdle }

    private func cancelAll() {
        // The last first: the kernel would start each one that follows what is cancelled.
        for slot in active.reversed() { slot.cancel() }
        isochronous.cancelAll()
    }

    private func closeIfIdle() {
        if closesWhenIdle && !isClosed && isIdle && worker.pendingJobs == 0 { close() }
    }

    private func close() {
        isClosed = true
        idle = []
        isochronous.close()
        memory.removeAll()
        control.close()
        _ = node?.take()
        mark = nil
        reportShutDown(true)
        whenClosed.take()?()
    }
}
