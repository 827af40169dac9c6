// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// Endpoint commands (xHCI 4.6.8 to 4.6.10), and the removal of transfers by the controller itself.
extension Endpoint {
    // MARK: - Stop Endpoint

    /// Starts Stop Endpoint: cancels all in-flight transfers, newest first, so that no device
    /// starts the next transfer because its predecessor was cancelled.
    mutating func beginStop(_ owner: SlotIdentity) {
        isStopping = true
        for queue in queues.indices {
            for descriptor in queues[queue].inFlight.reversed() where descriptor.outcome == nil {
                owner.connection?.device?.cancel(descriptor.id)
            }
        }
    }

    /// Whether the device has completed all in-flight transfers.
    var isDrained: Bool { queues.allSatisfy(\.isDrained) }

    /// Completes Stop Endpoint (xHCI 4.6.9).
    ///
    /// Posts the events of TDs that completed in the meantime, then one Stopped event for each ring
    /// with the residue of its first TD that has not, and requeues the rest. The lease of a
    /// transfer that the device still has is revoked. An idle endpoint or stream gets no event.
    ///
    /// - Returns: `false` if the endpoint halted while TDs were retired.
    mutating func finishStop(_ owner: SlotIdentity, _ bus: inout SystemBus) -> Bool {
        defer { isStopping = false }
        for queue in queues.indices { _ = retireCompleted(queue, owner, &bus, force: true) }
        guard state == .running else { return false }
        var stopped: [(cursor: CompletionCursor, head: TransferDescriptor)] = []
        for queue in queues.indices {
            if let head = stop(queue, owner, bus) { stopped.append(head) }
        }
        setState(.stopped, bus)
        for index in stopped.indices {
            let head = stopped[index].head
            post(&stopped[index].cursor, head, owner, &bus)
        }
        return true
    }

    /// Requeues the TDs of a queue; the first one resumes where it was stopped.
    ///
    /// - Parameter count: the number of TDs that have completed and keep their events for later.
    /// - Returns: the first TD that is requeued, and the cursor that has its events.
    @discardableResult
    private mutating func stop(
        _ queue: Int, after count: Int = 0, _ owner: SlotIdentity, _ bus: SystemBus
    ) -> (cursor: CompletionCursor, head: TransferDescriptor)? {
        let head = queues[queue].inFlight.dropFirst(count).first
        var transferred = 0
        if let head, case .cancelled(let count) = head.outcome {
            transferred = count
            // Before `requeue` revokes the lease, whose staging memory may have the data.
            // Data that does not reach the guest counts as not moved.
            if !writeBack(head, transferred, bus) { transferred = 0 }
        }
        requeue(queue, after: count, owner)
        guard let head else { return nil }
        let cursor = CompletionCursor(head, transferred: transferred, code: .stopped)
        rewind(queue, to: cursor, head)
        return (cursor, head)
    }

    /// Completes a halt of the controller, which began as Stop Endpoint does. The endpoint stays in
    /// the Running state: TDs that have completed get their events when the controller runs again,
    /// and the rest is requeued.
    ///
    /// - Returns: whether the endpoint has work when the controller runs again.
    mutating func finishHalt(_ owner: SlotIdentity, _ bus: SystemBus) -> Bool {
        var isRunnable = false
        for queue in queues.indices
        where !queues[queue].inFlight.isEmpty || schedule?.wakeTime != nil {
            isRunnable = true
            stop(queue, after: queues[queue].completedCount, owner, bus)
            streams?.markRunnable(queue)
        }
        isStopping = false
        return isRunnable
    }

    // MARK: - Reset Endpoint, Set TR Dequeue Pointer

    /// Reset Endpoint (xHCI 4.6.8) of a halted endpoint.
    ///
    /// - Parameter preservingTransfer: TSP: the TD resumes where it failed.
    mutating func reset(preservingTransfer: Bool, _ owner: SlotIdentity, _ bus: SystemBus) {
        for queue in queues.indices {
            // Other streams keep their progress: the guest has events for it.
            if queues[queue].hasFailed, !preservingTransfer { queues[queue].progress = .nothing }
            queues[queue].hasFailed = false
        }
        if !preservingTransfer { owner.connection?.device?.resetEndpoint(address) }
        setState(.stopped, bus)
    }

    /// Set TR Dequeue Pointer (xHCI 4.6.10) of an endpoint in the Stopped or Error state.
    mutating func setDequeuePointer(_ command: CommandTRB, _ bus: SystemBus) -> CompletionCode {
        var queue = 0
        if streams != nil {
            // SCT is ignored: the Stream Context has it, and FreeBSD does not set it here.
            do throws(StreamError) {
                queue = try queueIndex(ofStream: command.stream, bus)
            } catch {
                return .trbError
            }
        }
        queues[queue].dequeuePointer = command.dequeuePointer
        queues[queue].progress = .nothing
        queues[queue].hasFailed = false
        request = nil
        storeStreamContext(queue, bus)
        if streams == nil || state != .stopped { setState(.stopped, bus) }
        return .success
    }

    // MARK: - Removal

    /// Drops the endpoint: its transfers are cancelled without events and their leases revoked.
    mutating func drop(_ owner: SlotIdentity, _ bus: SystemBus) {
        requeueAll(owner)
        bus.leases.recycle(leases)
        leases = []
        setDisabled()
        guard index > 1, let device = owner.connection?.device else { return }
        device.resetEndpoint(address)
        if streams != nil { device.setStreams(0, for: address) }
    }

    /// Fails all in-flight transfers of a device that was detached, and revokes their leases.
    mutating func failAll() {
        for queue in queues.indices {
            for position in queues[queue].inFlight.indices
            where queues[queue].inFlight[position].outcome == nil {
                queues[queue].setOutcome(
                    .failed(.usbTransactionError, transferred: 0), at: position)
                _ = queues[queue].inFlight[position].buffer.endLease()
            }
            streams?.markRunnable(queue)
        }
    }
}
