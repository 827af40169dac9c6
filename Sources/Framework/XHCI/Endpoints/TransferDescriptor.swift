// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A transfer descriptor (xHCI 4.11): the TRBs that make one transfer, from the time they are read
/// until their events are posted.
///
/// For a control endpoint it holds the descriptors of all stages. It may also be a mere No Op, or a
/// mistake; both only have events.
struct TransferDescriptor {
    var id = Transfer.ID(rawValue: 0)
    /// The TRBs in order, with those Link TRBs that want an event.
    var entries = RingEntries()
    /// The place after the last TRB.
    var end: RingPosition
    /// What was done of the first TRB before the endpoint stopped in its middle.
    var start = PartialTransfer.nothing
    /// `nil` for what is not of a control request.
    var stages: ControlStages?
    /// The bytes that the device is asked for.
    var length = 0
    /// The interrupters that its events may go to, one bit each.
    var interrupters: UInt16 = 0
    /// `nil` while the device works on it.
    var outcome: Outcome?
    /// Isochronous: the microframe at which it is carried out.
    var due: Int64 = 0
    /// Isochronous: the guest wants to be interrupted for it.
    var interruptsAtOnce = false
    /// Isochronous: it asked for more than a service interval holds.
    var isTruncated = false
    /// Data on their way to guest memory that the device does not write to.
    var bounce: BounceBuffer?

    enum Outcome {
        case completed(transferred: Int)
        case cancelled(transferred: Int)
        /// `entry` is the TRB to blame, if it is not the one that the transferred bytes lead to.
        case failed(CompletionCode, transferred: Int, entry: Int? = nil)
    }

    var isControl: Bool { stages != nil }

    /// Whether it is a part of a control request whose Data Stage comes in pieces.
    var isPart: Bool { isControl && stages != .all }

    /// The data bytes that the TRB at an index asks for.
    func length(ofEntry index: Int) -> Int {
        let length = TransferTRB(entries[index].trb).length
        return index == 0 ? max(0, length - start.bytes) : length
    }

    /// Whether no more than this transfer must be started before its outcome is dealt with.
    var isFailed: Bool {
        if case .failed = outcome { return true }
        return false
    }
}

/// Which stages of a control request a descriptor holds (xHCI 4.11.2.2).
enum ControlStages {
    /// The whole request.
    case all
    /// The Setup Stage and the first piece of the Data Stage; more is to come.
    case setup
    /// A further piece of the Data Stage.
    case data
    /// The Status Stage that ends a Data Stage in pieces.
    case status
}

/// How far an endpoint had come in the middle of a TRB, so that it can go on there.
struct PartialTransfer {
    /// Bytes of the TRB that were moved.
    var bytes: Int
    /// Bytes since the last Event Data TRB.
    var accumulated: Int

    static let nothing = PartialTransfer(bytes: 0, accumulated: 0)
}

/// A Transfer Event to be, without its slot and endpoint.
struct TransferEvent {
    var code: CompletionCode
    var pointer: UInt64
    var length: Int
    var isEventData = false
    var interrupter: Int
    var interrupts: Bool
}

/// Goes through a finished transfer descriptor and tells which events it causes (xHCI 4.10.1,
/// 4.11.5.2), and where the endpoint stands afterwards.
///
/// It does not hold the descriptor, which is given to each step.
struct TransferWalk {
    /// The TRB at which a transfer failed or was stopped, and with which code.
    private let ending: (entry: Int, code: CompletionCode)?

    private var index = 0
    /// Bytes that the TRBs still to come have moved.
    private var left: Int
    /// EDTLA.
    private var accumulated: Int
    /// The device sent less than was asked for: all TRBs that follow in the stage are skipped.
    private var isShort = false
    private var hasToldShort = false

    /// Where a failed or stopped transfer stays; known when the walk is over.
    private(set) var place: (position: RingPosition, progress: PartialTransfer)?

    /// - Parameter code: `nil` for a transfer that completed.
    init(
        _ descriptor: borrowing TransferDescriptor, transferred: Int, code: CompletionCode?,
        entry: Int? = nil
    ) {
        left = transferred
        accumulated = descriptor.start.accumulated
        if let code {
            let last =
                entry ?? Self.lastEntry(descriptor, transferred: transferred, code: code)
            ending = (last, code)
        } else {
            ending = nil
        }
    }

    /// The TRB that was at work when `transferred` bytes were through.
    private static func lastEntry(
        _ descriptor: borrowing TransferDescriptor, transferred: Int, code: CompletionCode
    ) -> Int {
        // A control transfer that is stopped begins again with its Setup Stage.
        if descriptor.isControl, code == .stopped { return 0 }
        var left = transferred
        var last = 0
        for index in descriptor.entries.indices {
            let kind = descriptor.entries[index].trb.kind
            if kind == .statusStage { return index }
            guard TransferTRB(descriptor.entries[index].trb).hasData else { continue }
            last = index
            if descriptor.isControl, transferred >= descriptor.length { continue }
            let length = descriptor.length(ofEntry: index)
            if left < length { return index }
            left -= length
        }
        return last
    }

    /// The next event, or `nil` at the end.
    mutating func next(_ descriptor: borrowing TransferDescriptor) -> TransferEvent? {
        while index < descriptor.entries.count {
            if let event = visit(index, descriptor) { return event }
        }
        return nil
    }

    private mutating func visit(
        _ current: Int, _ descriptor: borrowing TransferDescriptor
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
            let moved = min(left, length)
            left -= moved
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
            place = (
                position,
                descriptor.isControl
                    ? .nothing : PartialTransfer(bytes: done, accumulated: accumulated)
            )
            // An error has its event whatever the TRB asks for.
            var ended = event(ending.code, at: position, trb, length: residue)
            ended.interrupts = true
            return ended
        }
        if trb.trb.kind == .eventData { return eventData(trb) }
        let wasShort = isShort
        if residue > 0 { isShort = true }
        if isShort {
            // One event tells of the short packet: at its TRB, or at the first that asks for one.
            let asked =
                trb.interruptOnCompletion || (!wasShort && trb.interruptOnShortPacket)
            guard asked, !hasToldShort, trb.hasData else { return nil }
            hasToldShort = true
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
