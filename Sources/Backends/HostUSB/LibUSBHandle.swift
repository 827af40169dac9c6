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

    weak var observer: (any HostHandleObserver)?

    private let pointer: Pointer
    private let context: LibUSBContext
    private let control: DeviceControl
    /// The open device node, if somebody else opened it; otherwise libusb has it.
    private let node: PassedDescriptor?
    private let worker: Worker
    private let loop: any EventLoop
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
    private var isAbandoned = false

    /// Takes over an opened device, which is closed by ``shutDown(by:)`` or ``closeWhenIdle()``.
    init(
        _ pointer: Pointer, node: PassedDescriptor? = nil, control: DeviceControl,
        context: LibUSBContext, worker: Worker, loop: any EventLoop
    ) {
        self.pointer = pointer
        self.node = node
        self.control = control
        self.context = context
        self.worker = worker
        self.loop = loop
        isochronous = IsochronousPipes(loop: loop) { () throws(LibUSBError) in
            try IsochronousBatch(context: context)
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

    func cancel(_ id: Transfer.ID) {
        if let slot = active.first(where: { $0.transfer?.id == id }) {
            slot.cancel()
        } else {
            _ = isochronous.cancel(id)
        }
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
        isUsed = true
        let control = control
        worker.perform {
            control.perform(operation)
        } then: { [weak self] outcome in
            completion(outcome)
            self?.closeIfIdle()
        }
    }

    private func freeSlot() throws(LibUSBError) -> TransferSlot {
        if let slot = idle.popLast() { return slot }
        let slot = try TransferSlot(context: context)
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

    /// Ends all transfers, gives the device back to the host's drivers and closes it, with the loop
    /// standing still.
    ///
    /// - Returns: whether all of that was done by `deadline`. What was not is left open for good: the
    ///   kernel may still write to memory of ours, and cleans up when the process ends.
    func shutDown(by deadline: Duration) -> Bool {
        guard !isClosed && !isAbandoned else { return true }
        isClosing = true
        closesWhenIdle = false
        cancelAll()
        while !isIdle && loop.now < deadline {
            context.handleEvents(waiting: .milliseconds(10))
        }
        let control = control
        let isUsed = isUsed
        worker.perform {
            control.giveBack(resetting: isUsed)
        } then: { _ in
        }
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
        for slot in active { slot.cancel() }
        isochronous.cancelAll()
    }

    private func closeIfIdle() {
        if closesWhenIdle && !isClosed && isIdle && worker.pendingJobs == 0 { close() }
    }

    private func close() {
        isClosed = true
        idle = []
        isochronous.close()
        control.close()
        _ = node?.take()
    }
}
