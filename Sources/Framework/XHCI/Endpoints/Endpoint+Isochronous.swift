// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The service of an isochronous endpoint (xHCI 4.11.2.3, 4.14.2.1).
///
/// TDs are read ahead, assigned a service interval each, and submitted at its end. A device with a
/// clock of its own (``USBDevice/keepsIsochronousTime``) gets them at once, since its bus schedules
/// them.
extension Endpoint {
    /// Submits the TD that is due, or reads the next one from the ring.
    ///
    /// - Returns: whether there was work.
    mutating func advanceSchedule(
        _ owner: SlotIdentity, _ bus: inout SystemBus, _ sequence: inout UInt64,
        budget: inout Int, now: Int64
    ) -> Bool {
        guard acceptsTransfers(0) else { return false }
        if owner.connection?.device?.keepsIsochronousTime ?? false {
            return submitAhead(owner, &bus, &sequence, budget: &budget)
        }
        if let descriptor = schedule?.popDue(now: now) {
            budget -= descriptor.entries.count
            submit(descriptor, 0, owner, bus, &sequence)
            return true
        }
        guard schedule?.isFull == false else { return false }
        guard let descriptor = readNext(0, bus, budget: &budget) else {
            if schedule?.endIfRingIsEmpty(now: now) ?? false { reportEmptyRing(owner, &bus) }
            return false
        }
        assignInterval(to: descriptor, now: now)
        return true
    }

    /// The microframe of the endpoint's next service; `nil` while it waits for its device.
    var wakeTime: Int64? {
        // An endpoint with streams has no queue before its first use.
        guard let schedule, acceptsTransfers(0) else { return nil }
        return schedule.wakeTime
    }

    private mutating func assignInterval(
        to descriptor: consuming TransferDescriptor, now: Int64
    ) {
        var due: Int64?
        if descriptor.outcome == nil {
            let frame = TransferTRB(descriptor.entries[0].trb).frameID
            switch schedule?.assign(frame: frame, now: now) {
            case .due(let time): due = time
            case .missed, nil:
                // The event points to the last TRB of the TD that was missed (xHCI 4.10.3.2).
                descriptor.outcome = .failed(
                    .missedServiceError, transferred: 0, entry: descriptor.entries.count - 1)
            }
        }
        schedule?.append(descriptor, due: due, now: now)
    }

    private mutating func submitAhead(
        _ owner: SlotIdentity, _ bus: inout SystemBus, _ sequence: inout UInt64, budget: inout Int
    ) -> Bool {
        guard let descriptor = readNext(0, bus, budget: &budget) else {
            if queues[0].inFlight.isEmpty, schedule?.endDeviceSchedule() ?? false {
                reportEmptyRing(owner, &bus)
            }
            return false
        }
        schedule?.beginDeviceSchedule()
        submit(descriptor, 0, owner, bus, &sequence)
        return true
    }

    /// Reports the first service interval without a TD (xHCI 4.10.3.1). The endpoint stays in the
    /// Running state and is scheduled again when its ring has a TD.
    private func reportEmptyRing(_ owner: SlotIdentity, _ bus: inout SystemBus) {
        guard bus.hasRoom(in: bus.interrupterBit(owner.interrupter)) else { return }
        bus.post(
            .transferEvent(
                kind == .isochronousIn ? .ringOverrun : .ringUnderrun, slot: owner.slot,
                endpoint: index, pointer: queues[0].dequeuePointer.address, length: 0),
            to: owner.interrupter)
    }
}
