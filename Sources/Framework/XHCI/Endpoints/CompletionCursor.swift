// SPDX-License-Identifier: Apache-2.0

/// The fields of a Transfer Event, without its slot and endpoint.
struct TransferEvent {
    var code: CompletionCode
    var pointer: UInt64
    var length: Int
    var isEventData = false
    var interrupter: Int
    var interrupts: Bool
}

/// Iterates over the Transfer Events of a completed TD: which of its TRBs get one, short packets,
/// residues and Event Data (xHCI 4.10.1, 4.11.5.2). It also finds the ring position at which a
/// failed or stopped TD resumes.
///
/// The cursor does not hold the TD, which is passed to each step.
struct CompletionCursor {
    /// The TRB at which the TD failed or was stopped, and its completion code.
    private let ending: (entry: Int, code: CompletionCode)?

    private var index = 0
    /// Bytes moved by the TRBs from `index` on.
    private var remaining: Int
    /// Bytes since the last Event Data TRB (EDTLA).
    private var accumulated: Int
    /// Whether a TRB of the stage was short: those after it are skipped.
    private var isShort = false
    private var hasReportedShort = false

    /// The ring position at which a failed or stopped TD resumes; known after the last event.
    private(set) var restart: (position: RingPosition, progress: PartialTransfer)?

    /// - Parameters:
    ///   - code: `nil` for a TD that completed.
    ///   - entry: the TRB of the error, if it is not the one at `transferred` bytes.
    init(
        _ descriptor: borrowing TransferDescriptor, transferred: Int, code: CompletionCode?,
        entry: Int? = nil
    ) {
        remaining = transferred
        accumulated = descriptor.start.accumulated
        if let code {
            let last =
                entry ?? Self.lastEntry(descriptor, transferred: transferred, code: code)
            ending = (last, code)
        } else {
            ending = nil
        }
    }

    /// The TRB that was in progress after `transferred` bytes.
    private static func lastEntry(
        _ descriptor: borrowing TransferDescriptor, transferred: Int, code: CompletionCode
    ) -> Int {
        // A control TD that is stopped begins again with its Setup Stage.
        if descriptor.isControl, code == .stopped { return 0 }
        var remaining = transferred
        var last = 0
        for index in descriptor.entries.indices {
            let kind = descriptor.entries[index].trb.kind
            if kind == .statusStage { return index }
            guard TransferTRB(descriptor.entries[index].trb).hasData else { continue }
            last = index
            if descriptor.isControl, transferred >= descriptor.length { continue }
            let length = descriptor.length(ofEntry: index)
            if remaining < length { return index }
            remaining -= length
        }
        return last
    }

    /// The next event, or `nil` at the end.
    mutating func next(_ descriptor: borrowing TransferDescriptor) -> TransferEvent? {
        while index < descriptor.entries.count {
            if let event = event(at: index, descriptor) { return event }
        }
        return nil
    }

    private mutating func event(
        at current: Int, _ descriptor: borrowing TransferDescriptor
    ) -> TransferEvent? {
        index = current + 1
        let entry = descriptor.entries[current]
        let position = entry.position
        let trb = TransferTRB(entry.trb)
        var residue = 0
        switch trb.trb.kind {
        case .normal, .isochronous, .dataStage:
            if trb.trb.kind == .dataStage { accumulated = 0 }
            let length = descriptor.length(ofEntry: current)
            let moved = min(remaining, length)
            remaining -= moved
            accumulated += moved
            residue = length - moved
        case .statusStage:
            isShort = false
            accumulated = 0
        default:
            break
        }
        if let ending, ending.entry == current {
            index = descriptor.entries.count
            let done = trb.hasData ? trb.length - residue : 0
            restart = (
                position,
                descriptor.isControl
                    ? .nothing : PartialTransfer(bytes: done, accumulated: accumulated)
            )
            // An error posts an event whatever IOC is, and BEI does not block its interrupt.
            var ended = event(ending.code, at: position, trb, length: residue)
            ended.interrupts = true
            return ended
        }
        if trb.trb.kind == .eventData { return eventData(trb) }
        let wasShort = isShort
        if residue > 0 { isShort = true }
        if isShort {
            // One event reports the short packet: at its TRB if that has IOC or ISP, otherwise at
            // the next TRB with IOC.
            let requestsEvent =
                trb.interruptOnCompletion || (!wasShort && trb.interruptOnShortPacket)
            guard requestsEvent, !hasReportedShort, trb.hasData else { return nil }
            hasReportedShort = true
            return event(.shortPacket, at: position, trb, length: residue)
        }
        return trb.interruptOnCompletion ? event(.success, at: position, trb, length: 0) : nil
    }

    private mutating func eventData(_ trb: TransferTRB) -> TransferEvent? {
        defer { accumulated = 0 }
        guard trb.interruptOnCompletion else { return nil }
        return TransferEvent(
            code: isShort ? .shortPacket : .success, pointer: trb.parameter, length: accumulated,
            isEventData: true, interrupter: trb.interrupter, interrupts: !trb.blockEventInterrupt)
    }

    private func event(
        _ code: CompletionCode, at position: RingPosition, _ trb: TransferTRB, length: Int
    ) -> TransferEvent {
        TransferEvent(
            code: code, pointer: position.address, length: length,
            interrupter: trb.interrupter, interrupts: !trb.blockEventInterrupt)
    }
}
