// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// Completion of TDs: records the outcome of a transfer, retires TDs in order, halts the endpoint
/// after an error (xHCI 4.8.3, 4.10.2) and requeues TDs.
///
/// ``CompletionCursor`` decides which TRBs of a TD get an event, and which residue it has.
extension Endpoint {
    /// Records the outcome of a transfer; `false` if it is not in flight at this endpoint.
    mutating func record(_ completion: Transfer.Completion) -> Bool {
        let queue = completion.id.queue
        guard queue < queues.count, let position = queues[queue].position(of: completion.id)
        else { return false }
        let length = queues[queue].inFlight[position].length
        let transferred = max(0, min(completion.transferred, length))
        let outcome: TransferDescriptor.Outcome =
            switch completion.status {
            case .completed: .completed(transferred: transferred)
            case .cancelled where transferred == length && length > 0 && kind != .control:
                .completed(transferred: transferred)
            case .cancelled: .cancelled(transferred: transferred)
            case .babbled where kind.isIsochronous && length < (schedule?.payload ?? 0):
                .failed(.isochronousBufferOverrun, transferred: transferred)
            // An isochronous endpoint has no handshake to stall with.
            case .stalled where kind.isIsochronous:
                .failed(.usbTransactionError, transferred: transferred)
            case .stalled: .failed(.stallError, transferred: transferred)
            case .babbled: .failed(.babbleDetectedError, transferred: transferred)
            case .failed, .disconnected: .failed(.usbTransactionError, transferred: transferred)
            }
        let recorded =
            request == nil ? outcome : recordPart(outcome, queues[queue].inFlight[position])
        queues[queue].setOutcome(recorded, at: position)
        streams?.markRunnable(queue)
        return true
    }

    // MARK: - Retiring

    /// Retires completed TDs of a queue in order: posts their events and ends their leases.
    ///
    /// - Parameter force: events are posted even if an event ring is full; they wait there.
    /// - Returns: `false` if events wait for an event ring that is full.
    mutating func retireCompleted(
        _ queue: Int, _ owner: SlotIdentity, _ bus: inout SystemBus, force: Bool = false
    ) -> Bool {
        while state == .running, !queues[queue].inFlight.isEmpty,
            let outcome = queues[queue].inFlight[0].outcome
        {
            if isStopping, case .cancelled = outcome { return true }
            guard force || bus.hasRoom(in: queues[queue].inFlight[0].interrupters) else {
                return false
            }
            let head = removeFirst(queue)
            streams?.releaseWaitingForCredits()
            switch outcome {
            case .completed(let transferred): complete(head, transferred, owner, &bus)
            case .cancelled(let transferred):
                // No command cancelled this transfer: its port was reset.
                fail(head, queue, .usbTransactionError, transferred, entry: nil, owner, &bus)
            case .failed(let code, let transferred, let entry):
                fail(head, queue, code, transferred, entry: entry, owner, &bus)
            }
        }
        return true
    }

    private mutating func removeFirst(_ queue: Int) -> TransferDescriptor {
        let head = queues[queue].removeFirst()
        load.remove(head)
        return head
    }

    private mutating func complete(
        _ descriptor: borrowing TransferDescriptor, _ transferred: Int, _ owner: SlotIdentity,
        _ bus: inout SystemBus
    ) {
        let isWritten = writeBack(descriptor, transferred, bus)
        // Before the events: the guest reuses the memory as soon as it sees one.
        endLease(of: descriptor)
        if isWritten { finishPart(descriptor, transferred) } else { request = nil }
        let code: CompletionCode? =
            !isWritten ? .dataBufferError : descriptor.isTruncated ? .bandwidthOverrunError : nil
        var cursor = CompletionCursor(descriptor, transferred: transferred, code: code)
        post(&cursor, descriptor, owner, &bus)
    }

    /// Ends a TD with an error. The output context changes before the event is posted.
    private mutating func fail(
        _ descriptor: borrowing TransferDescriptor, _ queue: Int, _ code: CompletionCode,
        _ transferred: Int, entry: Int?, _ owner: SlotIdentity, _ bus: inout SystemBus
    ) {
        _ = writeBack(descriptor, transferred, bus)
        endLease(of: descriptor)
        request = nil
        var cursor = CompletionCursor(
            descriptor, transferred: transferred, code: code, entry: entry)
        // A Data Buffer Error ends the TD, but does not halt the endpoint. Isochronous endpoints do
        // not halt.
        if code != .dataBufferError, !kind.isIsochronous || code == .trbError {
            retireCompletedStreams(except: queue, owner, &bus)
            requeueAll(owner)
            rewind(queue, to: cursor, descriptor)
            queues[queue].hasFailed = true
            setState(code == .trbError ? .error : .halted, bus)
        }
        post(&cursor, descriptor, owner, &bus)
    }

    /// Retires the completed TDs of other streams than the one that halts the endpoint: their data
    /// has moved, and must not move again.
    mutating func retireCompletedStreams(
        except halted: Int?, _ owner: SlotIdentity, _ bus: inout SystemBus
    ) {
        guard streams != nil else { return }
        for queue in queues.indices where queue != halted {
            while let head = queues[queue].inFlight.first,
                case .completed(let transferred) = head.outcome
            {
                let head = removeFirst(queue)
                complete(head, transferred, owner, &bus)
            }
        }
    }

    /// Ends all access of the device to the memory of a TD. The memory of a part of a
    /// control request belongs to the request.
    mutating func endLease(of descriptor: borrowing TransferDescriptor) {
        guard !descriptor.isPart, let lease = descriptor.buffer.endLease() else { return }
        leases.append(lease)
    }

    /// Copies data in staging memory to the guest's memory.
    ///
    /// - Returns: `false` if guest memory cannot be written, or the lease of the data was revoked.
    func writeBack(
        _ descriptor: borrowing TransferDescriptor, _ transferred: Int, _ bus: SystemBus
    ) -> Bool {
        guard transferred > 0 else { return true }
        if descriptor.buffer.isRevoked { return false }
        guard descriptor.direction == .in, descriptor.buffer.isStaged else { return true }
        do throws(DMAError) {
            try descriptor.write(descriptor.buffer.slice(from: 0, count: transferred), bus.memory)
            return true
        } catch {
            bus.log("transfer data: \(error)")
            return false
        }
    }

    /// Posts the events of a TD.
    func post(
        _ cursor: inout CompletionCursor, _ descriptor: borrowing TransferDescriptor,
        _ owner: SlotIdentity, _ bus: inout SystemBus
    ) {
        while let event = cursor.next(descriptor) {
            bus.post(
                .transferEvent(
                    event.code, slot: owner.slot, endpoint: index, pointer: event.pointer,
                    length: event.length, isEventData: event.isEventData),
                to: event.interrupter, interrupts: event.interrupts)
        }
    }

    // MARK: - Requeueing

    /// Requeues all in-flight TDs of all queues and revokes their leases.
    mutating func requeueAll(_ owner: SlotIdentity) {
        for queue in queues.indices { requeue(queue, owner) }
    }

    /// Requeues the in-flight TDs of a queue except the first `count`, which have completed and
    /// keep their events. Transfers that the device still has are cancelled and their leases
    /// revoked.
    ///
    /// The dequeue pointer moves to the first TRB of the first TD that is requeued.
    mutating func requeue(
        _ queue: Int, after count: Int = 0, _ owner: SlotIdentity
    ) {
        // Isochronous TDs that are not due yet follow those in flight on the ring.
        if let position = schedule?.clear() { queues[queue].dequeuePointer = position }
        for descriptor in queues[queue].rewind(to: count).reversed() {
            load.remove(descriptor)
            if descriptor.isPart { request?.revoke() }
            // The request begins again with its Setup Stage.
            if descriptor.stages == .setup { request = nil }
            endLease(of: descriptor)
            guard descriptor.outcome == nil, !isStopping else { continue }
            owner.connection?.device?.cancel(descriptor.id)
        }
    }

    /// Moves the dequeue pointer of a queue to the TRB at which a TD failed or was stopped.
    mutating func rewind(
        _ queue: Int, to cursor: CompletionCursor, _ descriptor: borrowing TransferDescriptor
    ) {
        var preview = cursor
        while preview.next(descriptor) != nil {}
        guard let restart = preview.restart else { return }
        queues[queue].dequeuePointer = restart.position
        queues[queue].progress = restart.progress
    }
}
