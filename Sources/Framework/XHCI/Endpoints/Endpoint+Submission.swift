// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// Submission of TDs: reads ahead on a transfer ring, within the limits on TDs, bytes and TRBs in
/// flight, and passes the transfers to the device.
extension Endpoint {
    /// Whether the limits of TDs, bytes and TRBs in flight allow one more TD of a queue.
    func hasCredits(_ queue: Int) -> Bool {
        guard load.trbs < XHCILimits.trbsInFlight else { return load.transfers == 0 }
        let count = queues[queue].inFlight.count
        // A stream with nothing in flight does not wait for other streams: the device may wait for
        // just this one.
        guard count > 0 else { return true }
        if kind == .control
            || queues[queue].inFlight[count - 1].isFailed && !kind.isIsochronous
        {
            return false
        }
        let limit =
            kind.isIsochronous ? XHCILimits.isochronousInFlight : XHCILimits.transfersInFlight
        return load.transfers < limit && load.bytes < XHCILimits.bytesInFlight
    }

    /// Whether another TD of a queue may be submitted.
    func acceptsTransfers(_ queue: Int) -> Bool {
        state == .running && !isStopping && hasCredits(queue)
    }

    /// Reads the next TD of a ring; `nil` if the guest has not queued a whole one.
    mutating func readNext(
        _ queue: Int, _ bus: SystemBus, budget: inout Int
    ) -> TransferDescriptor? {
        let descriptor = TransferRingReader.read(
            kind, at: queues[queue].dequeuePointer, start: queues[queue].progress,
            continuing: request?.setup.direction, bus, budget: &budget)
        guard let descriptor else { return nil }
        queues[queue].dequeuePointer = descriptor.end
        queues[queue].progress = .nothing
        return descriptor
    }

    /// Reads the next TD of a ring and submits it.
    ///
    /// - Returns: whether there was one.
    mutating func submitNext(
        _ queue: Int, _ owner: SlotIdentity, _ bus: SystemBus, _ sequence: inout UInt64,
        budget: inout Int
    ) -> Bool {
        guard acceptsTransfers(queue), let descriptor = readNext(queue, bus, budget: &budget)
        else { return false }
        if descriptor.isPart {
            submitPart(descriptor, owner, bus, &sequence)
        } else {
            // A Setup Stage ends a request that has not reached its Status Stage.
            if descriptor.isControl { request = nil }
            submit(descriptor, queue, owner, bus, &sequence)
        }
        return true
    }

    /// Submits a TD, unless its outcome is known already.
    mutating func submit(
        _ descriptor: consuming TransferDescriptor, _ queue: Int, _ owner: SlotIdentity,
        _ bus: SystemBus, _ sequence: inout UInt64
    ) {
        guard descriptor.outcome == nil else {
            appendInFlight(descriptor, queue)
            return
        }
        var transferKind = Transfer.Kind.bulk(
            stream: UInt16(truncatingIfNeeded: streams?.id(at: queue) ?? 0))
        descriptor.direction = address.direction
        var limit = Int.max
        if descriptor.isControl {
            let setup = SetupPacket(wire: descriptor.entries[0].trb.parameter)
            transferKind = .control(setup)
            descriptor.direction = setup.direction
            limit = Int(setup.length)
        } else if kind.isInterrupt {
            transferKind = .interrupt
        } else if let schedule {
            transferKind = .isochronous
            limit = schedule.payload
        }
        let lease = leases.popLast() ?? bus.leases.unusedLease()
        do throws(DMAError) {
            try descriptor.fill(lease, descriptor.direction, bus.memory, bus.leases.budget)
        } catch {
            lease.end()
            leases.append(lease)
            bus.log("transfer data: \(error)")
            descriptor.outcome = .failed(
                .dataBufferError, transferred: 0,
                entry: descriptor.entries.firstIndex { TransferTRB($0.trb).hasData })
            appendInFlight(descriptor, queue)
            return
        }
        let all = lease.buffer
        var buffer = all
        if all.count > limit {
            buffer = all.slice(from: 0, count: limit)
            descriptor.isTruncated = kind.isIsochronous
        }
        descriptor.length = buffer.count
        guard canReachDevice(owner, bus) else {
            lease.end()
            leases.append(lease)
            descriptor.outcome = .failed(.usbTransactionError, transferred: 0)
            appendInFlight(descriptor, queue)
            return
        }
        descriptor.buffer = all
        submit(descriptor, queue, transferKind, buffer, owner, &sequence)
    }

    /// Whether the device is attached and its port is enabled.
    func canReachDevice(_ owner: SlotIdentity, _ bus: SystemBus) -> Bool {
        guard let connection = owner.connection, connection.isAttached else { return false }
        return bus.registers.isPortEnabled(connection.port)
    }

    /// Submits a transfer to the device.
    mutating func submit(
        _ descriptor: consuming TransferDescriptor, _ queue: Int, _ kind: Transfer.Kind,
        _ buffer: TransferBuffer, _ owner: SlotIdentity, _ sequence: inout UInt64
    ) {
        sequence &+= 1
        let id = Transfer.ID(
            sequence: sequence, slot: owner.slot, endpoint: index, queue: queue)
        descriptor.id = id
        appendInFlight(descriptor, queue)
        owner.connection?.submit(
            Transfer(id: id, endpoint: address, kind: kind, buffer: buffer))
    }

    mutating func appendInFlight(_ descriptor: consuming TransferDescriptor, _ queue: Int) {
        load.add(descriptor)
        queues[queue].append(descriptor)
    }
}
