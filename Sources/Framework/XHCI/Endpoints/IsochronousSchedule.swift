// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

/// The service intervals of an isochronous endpoint and the TDs assigned to them (xHCI 4.11.2.3 to
/// 4.11.2.5, 4.14.2.1). All times are microframes since the controller was started.
///
/// Each TD has a service interval of its own: the next one, or the one that its Frame ID names. It
/// is due at the end of that interval, when its data would have been on the bus. If this process is
/// late by up to ``XHCILimits/isochronousLag``, the schedule catches up: no TD that was on the ring
/// in time is missed, and the endpoint keeps its rate.
struct IsochronousSchedule {
    /// The service interval of a TD.
    enum ScheduleDecision: Equatable {
        /// The TD is due at the end of its service interval, in this microframe.
        case due(Int64)
        /// The frame of its Frame ID has passed.
        case missed
    }

    /// Microframes of a service interval (ESIT).
    let interval: Int64
    /// Bytes that the endpoint may move in a service interval (Max ESIT Payload).
    let payload: Int
    /// The first service interval that is not assigned; `nil` while the endpoint is not scheduled.
    private(set) var next: Int64?
    /// TDs that are not due yet, in ring order.
    private var descriptors: Deque<TransferDescriptor> = []
    /// The TRBs of these TDs.
    private var trbs = 0

    init(_ context: EndpointContext) {
        interval = 1 << Int64(min(context.interval, EndpointContext.longestInterval))
        payload = context.maxServicePayload
    }

    // MARK: - Service intervals

    /// Assigns a service interval to the next TD.
    ///
    /// - Parameter frame: its Frame ID; `nil` to start as soon as possible (SIA).
    mutating func assign(frame: Int?, now: Int64) -> ScheduleDecision {
        if let next, now - next > XHCILimits.isochronousLag { self.next = nil }
        let earliest = next ?? aligned(now + 1)
        guard let frame else { return take(earliest) }
        // Frame IDs count modulo 2048; one that is at most 895 frames ahead is in the future.
        let reference = next.map { $0 >> 3 } ?? now >> 3
        let distance = (Int64(frame) - reference) & 0x7ff
        guard distance <= XHCILimits.isochronousFramesAhead else { return .missed }
        let first = (reference + distance) << 3
        let start = max(aligned(first), earliest)
        guard start < first + max(8, interval) else { return .missed }
        return take(start)
    }

    private mutating func take(_ start: Int64) -> ScheduleDecision {
        next = start + interval
        return .due(start + interval)
    }

    /// The first service interval that begins at `time` or later.
    private func aligned(_ time: Int64) -> Int64 { (time + interval - 1) & ~(interval - 1) }

    /// Ends the schedule if the ring was empty for a service interval.
    ///
    /// - Returns: whether it ended: only the first such interval is reported.
    mutating func endIfRingIsEmpty(now: Int64) -> Bool {
        guard descriptors.isEmpty, let next, next + interval <= now else { return false }
        self.next = nil
        return true
    }

    /// Whether a device with a clock of its own has TDs.
    private var isScheduledByDevice = false

    /// Records that a device with a clock of its own has TDs.
    mutating func beginDeviceSchedule() { isScheduledByDevice = true }

    /// Records that a device with a clock of its own has no TD left.
    ///
    /// - Returns: whether it had any since the last call.
    mutating func endDeviceSchedule() -> Bool {
        defer { isScheduledByDevice = false }
        return isScheduledByDevice
    }

    // MARK: - TDs

    /// Whether no further TD may be read ahead.
    var isFull: Bool {
        descriptors.count >= XHCILimits.isochronousAhead || trbs >= XHCILimits.trbsInFlight
    }

    /// Appends a TD. One that needs no service interval is due with the TD before it.
    mutating func append(_ descriptor: consuming TransferDescriptor, due: Int64?, now: Int64) {
        descriptor.due = due ?? descriptors.last?.due ?? now
        descriptor.interruptsAtOnce = descriptor.wantsInterrupt
        trbs += descriptor.entries.count
        descriptors.append(descriptor)
    }

    /// Removes and returns the first TD if it is due.
    mutating func popDue(now: Int64) -> TransferDescriptor? {
        guard let first = descriptors.first, first.due <= now else { return nil }
        trbs -= first.entries.count
        return descriptors.removeFirst()
    }

    /// Removes all TDs and ends the schedule.
    ///
    /// - Returns: the ring position of the first one.
    mutating func clear() -> RingPosition? {
        defer {
            descriptors.removeAll()
            trbs = 0
            next = nil
            isScheduledByDevice = false
        }
        return descriptors.first?.entries.first?.position
    }

    /// The microframe of the next service: that of the first TD with an interrupt, or of the check
    /// whether the ring is empty. TDs without an interrupt are delayed by up to
    /// ``XHCILimits/isochronousDelay``.
    var wakeTime: Int64? {
        guard let first = descriptors.first else { return next.map { $0 + interval } }
        let latest = first.due + XHCILimits.isochronousDelay
        for descriptor in descriptors where descriptor.due < latest {
            if descriptor.interruptsAtOnce { return descriptor.due }
        }
        return latest
    }
}

extension TransferDescriptor {
    /// Whether the TD interrupts the guest when it completes.
    fileprivate var wantsInterrupt: Bool {
        outcome != nil
            || entries.contains { entry in
                let trb = TransferTRB(entry.trb)
                return (trb.interruptOnCompletion || trb.interruptOnShortPacket)
                    && !trb.blockEventInterrupt
            }
    }
}
