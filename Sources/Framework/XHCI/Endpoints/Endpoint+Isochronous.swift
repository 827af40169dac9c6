// SPDX-License-Identifier: Apache-2.0

internal import USB

/// How an isochronous endpoint works through its ring (xHCI 4.11.2.3, 4.14.2.1).
///
/// Transfers are read ahead, given a service interval each, and started when that is over. A device
/// that keeps the time itself is given them at once, since its bus decides when they happen.
extension Endpoint {
    /// Starts what is due, else reads the next descriptor.
    ///
    /// - Returns: whether there was something to do.
    mutating func advanceSchedule(
        _ owner: SlotIdentity, _ bus: inout SystemBus, _ sequence: inout UInt64,
        budget: inout Int, now: Int64
    ) -> Bool {
        guard takesTransfers else { return false }
        if owner.connection?.device?.keepsIsochronousTime ?? false {
            return followDevice(owner, &bus, &sequence, budget: &budget)
        }
        if let descriptor = schedule?.popDue(now: now) {
            budget -= descriptor.entries.count
            start(descriptor, owner, bus, &sequence)
            return true
        }
        guard schedule?.isFull == false else { return false }
        guard let descriptor = readNext(bus, budget: &budget) else {
            if schedule?.runDry(now: now) ?? false { reportDryRing(owner, &bus) }
            return false
        }
        enqueue(descriptor, now: now)
        return true
    }

    /// The microframe in which the endpoint is to be visited next. One that waits for its device is
    /// visited when that answers.
    var wakeTime: Int64? { takesTransfers ? schedule?.wakeTime : nil }

    private mutating func enqueue(_ descriptor: consuming TransferDescriptor, now: Int64) {
        var due: Int64?
        if descriptor.outcome == nil {
            let frame = TransferTRB(descriptor.entries[0].trb).frameID
            switch schedule?.assign(frame: frame, now: now) {
            case .due(let time): due = time
            case .missed, nil:
                // The event points to the last TRB that was missed (xHCI 4.10.3.2).
                descriptor.outcome = .failed(
                    .missedServiceError, transferred: 0, entry: descriptor.entries.count - 1)
            }
        }
        schedule?.append(descriptor, due: due, now: now)
    }

    private mutating func followDevice(
        _ owner: SlotIdentity, _ bus: inout SystemBus, _ sequence: inout UInt64, budget: inout Int
    ) -> Bool {
        guard let descriptor = readNext(bus, budget: &budget) else {
            if queue.inFlight.isEmpty, schedule?.leave() ?? false { reportDryRing(owner, &bus) }
            return false
        }
        schedule?.follow()
        start(descriptor, owner, bus, &sequence)
        return true
    }

    /// Tells of the first service interval without a descriptor (xHCI 4.10.3.1). The endpoint goes on
    /// running, and is back on the schedule when there is something on its ring.
    private func reportDryRing(_ owner: SlotIdentity, _ bus: inout SystemBus) {
        guard bus.hasRoom(in: bus.interrupterBit(owner.interrupter)) else { return }
        bus.post(
            .transferEvent(
                kind == .isochronousIn ? .ringOverrun : .ringUnderrun, slot: owner.slot,
                endpoint: index, pointer: queue.ring.address, length: 0),
            to: owner.interrupter)
    }
}
