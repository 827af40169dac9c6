// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import USB

/// An opened device: its transfers through libusb, its blocking calls on a thread of their own.
final class LibUSBHandle: HostHandle {
    /// libusb's opened device. libusb allows its use from any thread.
    @safe
    struct Pointer: @unchecked Sendable {
        let raw: OpaquePointer
    }

    weak var observer: (any HostHandleObserver)?

    private let pointer: Pointer
    private let context: LibUSBContext
    private let control: DeviceControl
    private let worker: Worker
    private let loop: any EventLoop
    private var active: [TransferSlot] = []
    private var idle: [TransferSlot] = []
    /// Whether a guest may have left its traces in the device.
    private var isUsed = false
    private var isClosing = false
    private var closesWhenIdle = false
    private var isClosed = false
    private var isAbandoned = false

    /// Takes over an opened device, which is closed by ``shutDown(by:)`` or ``closeWhenIdle()``.
    init(
        _ pointer: Pointer, control: DeviceControl, context: LibUSBContext, worker: Worker,
        loop: any EventLoop
    ) {
        self.pointer = pointer
        self.control = control
        self.context = context
        self.worker = worker
        self.loop = loop
    }

    func submit(_ transfer: Transfer) -> HostSubmission {
        guard !isClosing else { return .disconnected }
        isUsed = true
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
        active.first { $0.transfer?.id == id }?.cancel()
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
        for slot in active { slot.cancel() }
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
        for slot in active { slot.cancel() }
        while !active.isEmpty && loop.now < deadline {
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
        guard active.isEmpty && control.isGivenBack else {
            isAbandoned = true
            _ = unsafe Unmanaged.passRetained(context)
            return false
        }
        close()
        return true
    }

    private func closeIfIdle() {
        if closesWhenIdle && !isClosed && active.isEmpty && worker.pendingJobs == 0 { close() }
    }

    private func close() {
        isClosed = true
        idle = []
        control.close()
    }
}
