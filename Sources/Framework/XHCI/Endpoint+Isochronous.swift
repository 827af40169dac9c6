// SPDX-License-Identifier: Apache-2.0

internal import USB

/// How an isochronous endpoint works through its ring (xHCI 4.11.2.3, 4.14.2.1).
///
/// Transfers are read ahead, given a service interval each, and started when that is over. A device
/// that keeps the time itself is given them at once, since its bus decides when they happen.
extension Endpoint {
    /// Starts what is due, else reads the next descriptor.
    ///
    /// - Returns: the TRBs that this was about; 0 if there is nothing to do for now.
    mutating func advanceSchedule(
        _ owner: SlotIdentity, _ bus: inout SystemBus, _ sequence: inout UInt64, now: Int64
    ) -> Int {
        guard takesTransfers else { return 0 }
        if owner.connection?.device?.keepsIsochronousTime ?? false {
            return followDevice(owner, &bus, &sequence)
        }
        if let descriptor = schedule?.popDue(now: now) {
            let count = descriptor.entries.count
            start(descriptor, owner, bus, &sequence)
            return count
        }
        guard schedule?.isFull == false else { return 0 }
        guard let descriptor = readNext(bus) else {
            if schedule?.runDry(now: now) ?? false { reportDryRing(owner, &bus) }
            return 0
        }
        let count = descriptor.entries.count
        enqueue(descriptor, now: now)
        return count
    }

    /// The microframe in which the endpoint is to be visited next. One that waits for its device is
    /// visited when that answers.
    var wakeTime: Int64? { takesTransfers ? schedule?.wakeTime : nil }

    private mutating func enqueue(_ descriptor: consuming TransferDescriptor, now: Int64) {
        var due: Int64?
        if descriptor.outcome == nil {
            let frame = TransferTRB(descriptor.entries[0].trb).frame
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
        _ owner: SlotIdentity, _ bus: inout SystemBus, _ sequence: inout UInt64
    ) -> Int {
        guard let descriptor = readNext(bus) else {
            if queue.inFlight.isEmpty, schedule?.leave() ?? false { reportDryRing(owner, &bus) }
            return 0
        }
        schedule?.follow()
        let count = descriptor.entries.count
        start(descriptor, owner, bus, &sequence)
        return count
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
