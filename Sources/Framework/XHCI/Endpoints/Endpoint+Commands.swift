// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import DequeModule
internal import USB

/// What commands do to an endpoint (xHCI 4.6.8-4.6.10), and what ends its transfers from outside.
extension Endpoint {
    // MARK: - Stop Endpoint

    /// Begins Stop Endpoint: asks the device for all that is in flight.
    mutating func beginStop(_ owner: SlotIdentity) {
        isStopping = true
        forEachQueue { endpoint in
            // The last first: a device must not begin with the next because one has been cancelled.
            for descriptor in endpoint.queue.inFlight.reversed() where descriptor.outcome == nil {
                owner.connection?.device?.cancel(descriptor.id)
            }
        }
    }

    /// Whether the device has given everything back.
    var isReadyToStop: Bool {
        queue.isSettled && streams?.areSettled ?? true
    }

    /// Ends Stop Endpoint (xHCI 4.6.9): transfers that finished in the meantime have their events, a
    /// Stopped event tells how far the next one came, and the rest goes back to the ring. What the
    /// device has not given back by now is given up. An idle endpoint, or stream, has no event.
    ///
    /// - Returns: `false` if the endpoint halted on the way.
    mutating func finishStop(_ owner: SlotIdentity, _ bus: inout SystemBus) -> Bool {
        defer { isStopping = false }
        forEachQueue { endpoint in _ = endpoint.settle(owner, &bus, force: true) }
        guard state == .running else { return false }
        var stopped: [(walk: TransferWalk, head: TransferDescriptor)] = []
        forEachQueue { endpoint in
            if let head = endpoint.stopQueue(owner, bus) { stopped.append(head) }
        }
        setState(.stopped, bus)
        for index in stopped.indices {
            let head = stopped[index].head
            post(&stopped[index].walk, head, owner, &bus)
        }
        return true
    }

    /// Gives the selected queue's transfers back to its ring, the first as far as it did not come.
    ///
    /// - Parameter count: so many that are finished stay, and keep their events for later.
    /// - Returns: the first, and the walk that has its events.
    @discardableResult
    private mutating func stopQueue(
        _ owner: SlotIdentity, _ bus: SystemBus, behind count: Int = 0
    ) -> (walk: TransferWalk, head: TransferDescriptor)? {
        let head = queue.inFlight.dropFirst(count).first
        giveBackQueue(owner, behind: count)
        guard let head else { return nil }
        var transferred = 0
        if case .cancelled(let count) = head.outcome { transferred = count }
        _ = writeBack(head, transferred, bus)
        let walk = TransferWalk(head, transferred: transferred, code: .stopped)
        standWhere(walk, head)
        return (walk, head)
    }

    /// Ends a halt of the controller, which began as Stop Endpoint does. The endpoint goes on running
    /// with the controller: what has finished has its events then, and the rest is read again, from
    /// where it came to.
    ///
    /// - Returns: whether there is any of it.
    mutating func finishHalt(_ owner: SlotIdentity, _ bus: SystemBus) -> Bool {
        var hasMore = false
        forEachQueue { endpoint in
            guard !endpoint.queue.inFlight.isEmpty || endpoint.schedule?.wakeTime != nil else {
                return
            }
            hasMore = true
            endpoint.stopQueue(owner, bus, behind: endpoint.queue.finishedCount)
            if let selected = endpoint.streams?.selected { endpoint.streams?.markReady(selected) }
        }
        isStopping = false
        return hasMore
    }

    // MARK: - Reset Endpoint, Set TR Dequeue Pointer

    /// Reset Endpoint (xHCI 4.6.8) of a halted endpoint.
    ///
    /// - Parameter preservingTransfer: TSP: the transfer goes on where it failed.
    mutating func reset(preservingTransfer: Bool, _ owner: SlotIdentity, _ bus: SystemBus) {
        forEachQueue { endpoint in
            // What other streams have moved is moved, and the guest was told of it.
            if endpoint.queue.hasFailed, !preservingTransfer { endpoint.queue.progress = .nothing }
            endpoint.queue.hasFailed = false
        }
        if !preservingTransfer { owner.connection?.device?.resetEndpoint(address) }
        setState(.stopped, bus)
    }

    /// Set TR Dequeue Pointer (xHCI 4.6.10) of a stopped endpoint, or of one in error.
    mutating func setDequeuePointer(_ command: CommandTRB, _ bus: SystemBus) -> CompletionCode {
        if streams != nil {
            // SCT is not looked at: it is known, and FreeBSD leaves it out.
            do throws(StreamTable.Mistake) {
                select(try streams?.place(of: command.stream, bus))
            } catch {
                return .trbError
            }
        }
        queue.ring = command.dequeuePointer
        queue.progress = .nothing
        queue.hasFailed = false
        request = nil
        storeStream(bus)
        select(nil)
        if streams == nil || state != .stopped { setState(.stopped, bus) }
        return .success
    }

    // MARK: - From outside

    /// The endpoint is dropped: nothing of it is told any more.
    mutating func abandon(_ owner: SlotIdentity) {
        giveBack(owner)
        setDisabled()
        guard index > 1, let device = owner.connection?.device else { return }
        device.resetEndpoint(address)
        if streams != nil { device.setStreams(0, for: address) }
    }

    /// The device is gone: everything in flight fails.
    ///
    /// - Parameter last: but for this one, in whose memory it is still at work.
    mutating func loseDevice(except last: Transfer.ID?) {
        forEachQueue { endpoint in
            for place in endpoint.queue.inFlight.indices
            where endpoint.queue.inFlight[place].outcome == nil
                && endpoint.queue.inFlight[place].id != last
            {
                endpoint.queue.setOutcome(
                    .failed(.usbTransactionError, transferred: 0), at: place)
            }
            if let selected = endpoint.streams?.selected { endpoint.streams?.markReady(selected) }
        }
    }

    /// Cancels transfers whose data lie in memory that is taken away.
    mutating func cancelTransfers(
        touching start: GuestAddress, count: UInt64, _ owner: SlotIdentity
    ) {
        forEachQueue { endpoint in
            for descriptor in endpoint.queue.inFlight.reversed()
            where descriptor.outcome == nil && descriptor.touches(start, count: count) {
                owner.connection?.device?.cancel(descriptor.id)
            }
        }
    }
}
