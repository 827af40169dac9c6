// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import DequeModule
internal import Logging
internal import USB

/// From doorbells to transfers and back: each endpoint's ring is read as far as the device may be
/// kept busy, and what it has done is told in ring order (xHCI 4.9, 4.10).
extension Controller {
    /// A doorbell: a stopped endpoint runs again (xHCI 4.8.3).
    func ring(_ endpoint: Endpoint) {
        if endpoint.state == .stopped { setState(.running, of: endpoint) }
        guard endpoint.state == .running else { return }
        enqueue(endpoint)
    }

    func serviceEndpoints(_ budget: inout Int) {
        // Those that come to be queued meanwhile are next round's.
        for _ in 0..<queuedEndpoints.count where budget > 0 {
            guard let endpoint = queuedEndpoints.popFirst() else { return }
            endpoint.isQueued = false
            guard slots[bounded: endpoint.slot]?.endpoints[endpoint.dci] === endpoint else {
                continue
            }
            guard retire(endpoint) else {
                // The guest has to make room for events first.
                enqueue(endpoint)
                continue
            }
            start(endpoint, &budget)
        }
    }

    // MARK: - Starting

    private func start(_ endpoint: Endpoint, _ budget: inout Int) {
        while endpoint.state == .running, endpoint.hasRoom, registers.isRunning {
            guard budget > 0 else { return enqueue(endpoint) }
            let gathering: TransferDescriptor.Gathering
            do throws(DMAError) {
                gathering = try TransferDescriptor.gather(
                    from: endpoint.position, isControlEndpoint: endpoint.kind == .control,
                    memory: memory)
            } catch {
                fail("ring of slot \(endpoint.slot) endpoint \(endpoint.dci)", error)
                return
            }
            switch gathering {
            case .incomplete:
                return
            case .complete(let descriptor):
                budget -= 1
                endpoint.position = descriptor.end
                begin(descriptor, on: endpoint)
            case .invalid(let position, let trb):
                budget -= 1
                refuse(trb, at: position, on: endpoint)
            }
        }
    }

    /// A TRB that cannot be: told in its turn, and nothing behind it is looked at.
    private func refuse(_ trb: TransferTRB?, at position: RingPosition, on endpoint: Endpoint) {
        let entry = TransferDescriptor.Entry(
            address: position.address, trb: trb ?? TransferTRB(trb: TRB()), position: position)
        let descriptor = TransferDescriptor(
            entries: [entry], start: position, end: position, length: 0)
        endpoint.isBlocked = true
        append(descriptor, on: endpoint, outcome: .refused(.trbError, entry: 0))
    }

    private func begin(_ descriptor: TransferDescriptor, on endpoint: Endpoint) {
        var direction = endpoint.address.direction
        var kind = Transfer.Kind.bulk(stream: 0)
        if descriptor.isControl, let first = descriptor.entries.first {
            let setup = SetupPacket(wire: first.trb.buffer)
            direction = setup.direction
            kind = .control(setup)
            if let wrong = descriptor.wrongControlEntry(setup) {
                endpoint.isBlocked = true
                append(descriptor, on: endpoint, outcome: .refused(.trbError, entry: wrong))
                return
            }
        } else if endpoint.kind.isInterrupt {
            kind = .interrupt
        }
        guard descriptor.isControl || descriptor.entries.contains(where: { $0.trb.movesData })
        else {
            // No Op and Event Data alone: nothing for the device.
            append(descriptor, on: endpoint, outcome: .ended(.completed, transferred: 0))
            return
        }
        var skipped = 0
        var accumulated = 0
        if let leftover = endpoint.leftover {
            endpoint.leftover = nil
            if leftover.address == descriptor.entries.first?.address {
                skipped = leftover.bytes
                accumulated = leftover.accumulated
            }
        }
        var wanted = descriptor.length - skipped
        if case .control(let setup) = kind { wanted = min(wanted, Int(setup.length)) }
        var buffer = TransferBuffer()
        var bounces: [BounceBuffer] = []
        if let fault = gatherBytes(
            of: descriptor, skipping: skipped, count: wanted, direction: direction, into: &buffer,
            &bounces)
        {
            endpoint.isBlocked = true
            append(descriptor, on: endpoint, outcome: fault)
            return
        }
        guard let slot = slots[bounded: endpoint.slot], let port = slot.portIndex,
            hub.isUsable(port), let attachment = hub.attachments[port]
        else {
            endpoint.isBlocked = true
            append(descriptor, on: endpoint, outcome: .ended(.disconnected, transferred: 0))
            return
        }
        let id = append(
            descriptor, on: endpoint, direction: direction, bounces: bounces, skipped: skipped,
            accumulated: accumulated, outcome: nil)
        attachment.device.submit(
            Transfer(id: id, endpoint: endpoint.address, kind: kind, buffer: buffer))
    }

    @discardableResult
    private func append(
        _ descriptor: TransferDescriptor, on endpoint: Endpoint, direction: Direction = .out,
        bounces: [BounceBuffer] = [], skipped: Int = 0, accumulated: Int = 0,
        outcome: TransferInFlight.Outcome?
    ) -> Transfer.ID {
        let id = makeTransferID(endpoint)
        endpoint.bytesInFlight += descriptor.length
        endpoint.inFlight.append(
            TransferInFlight(
                id: id, descriptor: descriptor, direction: direction, bounces: bounces,
                skipped: skipped, accumulated: accumulated, outcome: outcome))
        if outcome != nil { enqueue(endpoint) }
        return id
    }

    /// Finds the bytes of a transfer in guest memory.
    private func gatherBytes(
        of descriptor: TransferDescriptor, skipping skipped: Int, count: Int, direction: Direction,
        into buffer: inout TransferBuffer, _ bounces: inout [BounceBuffer]
    ) -> TransferInFlight.Outcome? {
        var skip = skipped
        var left = count
        for (index, entry) in descriptor.entries.enumerated() where entry.trb.movesData {
            let size = min(entry.trb.length - min(skip, entry.trb.length), left)
            let start = GuestAddress(entry.trb.buffer) + skip
            let offsetInTRB = skip
            skip = 0
            left -= size
            guard size > 0 else { continue }
            if entry.trb.immediateData {
                guard direction == .out else { return .refused(.trbError, entry: index) }
                let bounce = BounceBuffer(count: size, address: nil, offset: buffer.count)
                for place in 0..<size {
                    unsafe bounce.bytes[place] = UInt8(
                        truncatingIfNeeded: entry.trb.buffer >> UInt64((place + offsetInTRB) * 8))
                }
                unsafe buffer.append(
                    UnsafeMutableRawBufferPointer(rebasing: bounce.bytes[..<size]), keeping: bounce)
                continue
            }
            do throws(DMAError) {
                // A bounce is filled after this loop: reading it may wait.
                var remote: [BounceBuffer] = []
                try memory.forEachSlice(at: start, count: size, writable: direction == .in) {
                    slice in
                    if let bytes = unsafe slice.bytes {
                        unsafe buffer.append(bytes, keeping: slice.owner)
                    } else {
                        let bounce = BounceBuffer(
                            count: slice.count, address: slice.address, offset: buffer.count)
                        unsafe buffer.append(
                            UnsafeMutableRawBufferPointer(rebasing: bounce.bytes[...]),
                            keeping: bounce)
                        remote.append(bounce)
                    }
                }
                if direction == .out {
                    for bounce in remote {
                        guard let address = bounce.address else { continue }
                        unsafe try memory.read(into: bounce.bytes, at: address)
                    }
                }
                bounces += remote
            } catch {
                logger.debug("buffer of a transfer: \(error)")
                return .refused(.dataBufferError, entry: index)
            }
        }
        return nil
    }

    // MARK: - Ending

    /// Tells the guest of transfers that have ended, in ring order.
    ///
    /// - Returns: false if events have to wait for the guest.
    private func retire(_ endpoint: Endpoint) -> Bool {
        while let first = endpoint.inFlight.first, let outcome = first.outcome {
            guard registers.isRunning else { return true }
            guard endpoint.state == .running else { return true }
            guard !interrupters.contains(where: \.isCongested) else { return false }
            endpoint.inFlight.removeFirst()
            endpoint.bytesInFlight -= first.descriptor.length
            finish(first, outcome, on: endpoint)
        }
        return true
    }

    /// Tells of one transfer, and halts the endpoint if it failed.
    func finish(
        _ transfer: TransferInFlight, _ outcome: TransferInFlight.Outcome, on endpoint: Endpoint
    ) {
        var report = TransferReport(transfer, slot: endpoint.slot, endpoint: endpoint.dci)
        switch outcome {
        case .refused(let code, let entry):
            halt(endpoint, code == .trbError ? .error : .halted, at: transfer.descriptor.start)
            report.fail(code, entry: entry)
        case .ended(let status, let transferred):
            let moved = max(0, min(transferred, transfer.descriptor.length - transfer.skipped))
            guard writeBack(transfer, moved) else {
                halt(endpoint, .halted, at: transfer.descriptor.start)
                report.fail(.dataBufferError, moved: moved)
                break
            }
            switch status {
            case .completed:
                report.succeed(moved: moved)
            case .stalled:
                halt(endpoint, .halted, at: transfer.descriptor.start)
                report.fail(.stallError, moved: moved)
            case .babbled:
                halt(endpoint, .halted, at: transfer.descriptor.start)
                report.fail(.babbleDetected, moved: moved)
            case .failed, .cancelled, .disconnected:
                halt(endpoint, .halted, at: transfer.descriptor.start)
                report.fail(.usbTransactionError, moved: moved)
            }
        }
        post(report)
    }

    func post(_ report: TransferReport) {
        for event in report.events {
            let target = event.interrupter < interrupters.count ? event.interrupter : 0
            interrupters[target].post(event.trb, interrupts: event.interrupts)
        }
    }

    /// Stores what an IN transfer brought into memory that is reached by messages.
    func writeBack(_ transfer: TransferInFlight, _ moved: Int) -> Bool {
        guard transfer.direction == .in else { return true }
        for bounce in transfer.bounces {
            guard let address = bounce.address else { continue }
            let count = unsafe min(bounce.bytes.count, moved - bounce.offset)
            guard count > 0 else { continue }
            do throws(DMAError) {
                unsafe try memory.write(
                    UnsafeRawBufferPointer(rebasing: bounce.bytes[..<count]), at: address)
            } catch {
                logger.debug("writing back a transfer: \(error)")
                return false
            }
        }
        return true
    }

    /// Stops an endpoint because of a transfer: what was behind it on the ring is given up and
    /// read anew when the guest has recovered. The context is written before any event tells of it.
    private func halt(_ endpoint: Endpoint, _ state: EndpointState, at position: RingPosition) {
        abandonTransfers(of: endpoint)
        endpoint.position = position
        endpoint.isBlocked = false
        setState(state, of: endpoint)
    }

    // MARK: - Giving up

    /// Takes back all transfers of an endpoint. Those that the device still has are remembered
    /// until it gives back their memory.
    func abandonTransfers(of endpoint: Endpoint) {
        let transfers = endpoint.inFlight
        endpoint.inFlight.removeAll()
        endpoint.bytesInFlight = 0
        endpoint.isBlocked = false
        for transfer in transfers where transfer.outcome == nil {
            endpoint.abandoned.append(transfer.id)
        }
        for transfer in transfers where transfer.outcome == nil {
            device(of: endpoint)?.cancel(transfer.id)
        }
    }

    /// The transfers of a port are over: its device is gone or cannot be reached.
    func endTransfers(port: Int) {
        for case let slot? in slots where slot.portIndex == port {
            for case let endpoint? in slot.endpoints {
                endpoint.abandoned = []
                for place in endpoint.inFlight.indices
                where endpoint.inFlight[place].outcome == nil {
                    if let attachment = hub.attachments[port] {
                        attachment.device.cancel(endpoint.inFlight[place].id)
                    }
                    endpoint.inFlight[place].outcome = .ended(.disconnected, transferred: 0)
                }
                enqueue(endpoint)
            }
        }
    }

    /// The client takes memory away while transfers use it: they fail.
    func abandonTransfers(touching start: GuestAddress, count: UInt64) {
        for case let slot? in slots {
            for case let endpoint? in slot.endpoints {
                for transfer in endpoint.inFlight
                where transfer.outcome == nil && transfer.touches(start, count: count) {
                    device(of: endpoint)?.cancel(transfer.id)
                }
            }
        }
    }

    func device(of endpoint: Endpoint) -> (any USBDevice)? {
        guard let port = slots[bounded: endpoint.slot]?.portIndex else { return nil }
        return hub.attachments[port]?.device
    }

    // MARK: - Contexts

    /// Changes an endpoint's state in the output context (xHCI 4.8.3).
    func setState(_ state: EndpointState, of endpoint: Endpoint) {
        endpoint.context.state = state
        endpoint.context.dequeue = endpoint.position.pointer
        writeContext(of: endpoint)
    }

    func writeContext(of endpoint: Endpoint) {
        do throws(DMAError) {
            try memory.store(endpoint.context.word0, at: endpoint.contextAddress)
            try memory.store(endpoint.context.word1, at: endpoint.contextAddress + 4)
            try memory.store(endpoint.context.dequeue, at: endpoint.contextAddress + 8)
            try memory.store(endpoint.context.word4, at: endpoint.contextAddress + 16)
        } catch {
            fail("context of slot \(endpoint.slot) endpoint \(endpoint.dci)", error)
        }
    }

    /// Memory that the controller itself needs is not there: a host system error.
    func fail(_ what: @autoclosure () -> String, _ error: DMAError) {
        logger.debug("\(what()): \(error)")
        registers.failHost()
    }
}

extension TransferInFlight {
    /// Whether a data TRB points into the range.
    func touches(_ start: GuestAddress, count: UInt64) -> Bool {
        guard count > 0 else { return false }
        let end = start.rawValue.addingReportingOverflow(count - 1)
        let last = end.overflow ? .max : end.partialValue
        return descriptor.entries.contains { entry in
            guard entry.trb.movesData, !entry.trb.immediateData, entry.trb.length > 0 else {
                return false
            }
            let entryLast = entry.trb.buffer &+ UInt64(entry.trb.length - 1)
            return entry.trb.buffer <= last && entryLast >= start.rawValue
        }
    }
}

extension TransferDescriptor {
    /// The entry of a control transfer that contradicts its Setup packet, if one does.
    func wrongControlEntry(_ setup: SetupPacket) -> Int? {
        guard let first = entries.first, first.trb.immediateData, first.trb.length == 8 else {
            return 0
        }
        return entries.firstIndex {
            $0.trb.trb.kind == .dataStage && $0.trb.isIn != (setup.direction == .in)
        }
    }
}
