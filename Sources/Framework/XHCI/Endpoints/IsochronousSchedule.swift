// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

/// When the transfer descriptors of an isochronous endpoint are due (xHCI 4.11.2.3-4.11.2.5,
/// 4.14.2.1). All times are microframes since the controller was started.
///
/// Each descriptor has a service interval of its own, the next one or the one that its Frame ID
/// names. It is carried out when that is over, which is when its data would have been on the bus.
/// Descriptors that are on the ring in time are never missed because this process was late: they
/// are caught up with, so that a stream keeps its rate.
struct IsochronousSchedule {
    /// What becomes of a descriptor.
    enum Verdict: Equatable {
        /// It is carried out at the end of its service interval.
        case due(Int64)
        /// Its frame has passed.
        case missed
    }

    /// Microframes of a service interval (ESIT).
    let interval: Int64
    /// Bytes that the endpoint may move in a service interval (Max ESIT Payload).
    let payload: Int
    /// The service interval after the last one that is taken; `nil` while the endpoint is off the
    /// schedule.
    private(set) var next: Int64?
    /// What was read of the ring and is not due yet, in order.
    private var descriptors: Deque<TransferDescriptor> = []
    /// The TRBs of all of them.
    private var trbs = 0

    init(_ context: EndpointContext) {
        interval = 1 << Int64(min(context.interval, EndpointContext.longestInterval))
        payload = context.maxServicePayload
    }

    // MARK: - Service intervals

    /// Finds a service interval for the next descriptor.
    ///
    /// - Parameter frame: its Frame ID; `nil` where it is to start as soon as possible (SIA).
    mutating func assign(frame: Int?, now: Int64) -> Verdict {
        if let next, now - next > XHCILimits.isochronousLag { self.next = nil }
        let earliest = next ?? aligned(now + 1)
        guard let frame else { return take(earliest) }
        // Frame IDs count modulo 2048; what is no more than 895 frames ahead is in the future.
        let reference = next.map { $0 >> 3 } ?? now >> 3
        let distance = (Int64(frame) - reference) & 0x7ff
        guard distance <= XHCILimits.isochronousFramesAhead else { return .missed }
        let first = (reference + distance) << 3
        let start = max(aligned(first), earliest)
        guard start < first + max(8, interval) else { return .missed }
        return take(start)
    }

    private mutating func take(_ start: Int64) -> Verdict {
        next = start + interval
        return .due(start + interval)
    }

    /// The first service interval that begins at `time` or later.
    private func aligned(_ time: Int64) -> Int64 { (time + interval - 1) & ~(interval - 1) }

    /// Takes the endpoint off the schedule because its ring is empty in a service interval.
    ///
    /// - Returns: whether it was on it: only the first such interval is told of.
    mutating func runDry(now: Int64) -> Bool {
        guard descriptors.isEmpty, let next, next + interval <= now else { return false }
        self.next = nil
        return true
    }

    /// The device keeps the time itself, and has something to do.
    private var followsDevice = false

    /// Notes that a device that keeps the time itself was given something.
    mutating func follow() { followsDevice = true }

    /// Notes that it has nothing left to do.
    ///
    /// - Returns: whether it had.
    mutating func leave() -> Bool {
        defer { followsDevice = false }
        return followsDevice
    }

    // MARK: - Descriptors

    /// Whether no more descriptors are to be read ahead.
    var isFull: Bool {
        descriptors.count >= XHCILimits.isochronousAhead || trbs >= XHCILimits.trbsInFlight
    }

    /// Adds a descriptor. One that needs no service interval has the time of the one before.
    mutating func append(_ descriptor: consuming TransferDescriptor, due: Int64?, now: Int64) {
        descriptor.due = due ?? descriptors.last?.due ?? now
        descriptor.interruptsAtOnce = descriptor.wantsInterrupt
        trbs += descriptor.entries.count
        descriptors.append(descriptor)
    }

    /// Takes the first descriptor if its time has come.
    mutating func popDue(now: Int64) -> TransferDescriptor? {
        guard let first = descriptors.first, first.due <= now else { return nil }
        trbs -= first.entries.count
        return descriptors.removeFirst()
    }

    /// Forgets all descriptors and leaves the schedule.
    ///
    /// - Returns: where the first of them stands on the ring.
    mutating func clear() -> RingPosition? {
        defer {
            descriptors.removeAll()
            trbs = 0
            next = nil
            followsDevice = false
        }
        return descriptors.first?.entries.first?.position
    }

    /// When there is something to do: for the first descriptor that the guest wants to be told of, or
    /// to see whether the ring is dry. What nobody waits for is put off a little.
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
    /// Whether the guest wants to be interrupted for it.
    fileprivate var wantsInterrupt: Bool {
        outcome != nil
            || entries.contains { entry in
                let trb = TransferTRB(entry.trb)
                return (trb.interruptOnCompletion || trb.interruptOnShortPacket)
                    && !trb.blockEventInterrupt
            }
    }
}
