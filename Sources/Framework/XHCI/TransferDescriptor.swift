// SPDX-License-Identifier: Apache-2.0

internal import DMA

/// The TRBs of one transfer: a TD, or the two or three TDs of a control transfer (xHCI 4.11.2).
struct TransferDescriptor {
    struct Entry {
        let address: UInt64
        let trb: TransferTRB
        /// The place of this TRB on the ring, for a stop in its midst.
        let position: RingPosition
    }

    /// What was found on a ring.
    enum Gathering {
        /// All of a transfer.
        case complete(TransferDescriptor)
        /// The driver has not handed over the last TRB yet, or there is none at all.
        case incomplete
        /// A TRB that cannot be, at this place.
        case invalid(RingPosition, TransferTRB?)
    }

    var entries: [Entry]
    /// Where the transfer begins; a stop before anything has moved returns here.
    let start: RingPosition
    /// Behind the transfer.
    var end: RingPosition
    /// Bytes that the TRBs ask to be moved.
    let length: Int

    /// Whether it is a control transfer: it begins with a Setup Stage TRB.
    var isControl: Bool { entries.first?.trb.trb.kind == .setupStage }

    /// Collects the next transfer from `start` on.
    static func gather(
        from start: RingPosition, isControlEndpoint: Bool, memory: GuestMemory
    ) throws(DMAError) -> Gathering {
        var position = start
        var entries: [Entry] = []
        var links = 0
        var length = 0
        while let trb = try position.fetch(memory) {
            let view = TransferTRB(trb: trb)
            if trb.kind == .link {
                let link = LinkTRB(trb: trb)
                links += 1
                guard links <= Limits.consecutiveLinks else { return .invalid(position, view) }
                let isEnd = !entries.isEmpty && !link.chain && entries.last?.trb.chain == true
                if link.interruptOnCompletion || isEnd {
                    entries.append(Entry(address: position.address, trb: view, position: position))
                }
                position.follow(link)
                guard isEnd, !isControlEndpoint else { continue }
                return .complete(
                    TransferDescriptor(
                        entries: entries, start: start, end: position, length: length))
            }
            links = 0
            guard isAllowed(trb.kind, after: entries, isControlEndpoint: isControlEndpoint),
                entries.count < Limits.trbsPerTransfer
            else { return .invalid(position, view) }
            if view.movesData {
                length += view.length
                let isBroken = view.immediateData && view.length > 8
                guard length <= Limits.bytesPerTransfer, !isBroken else {
                    return .invalid(position, view)
                }
            }
            entries.append(Entry(address: position.address, trb: view, position: position))
            position.advance()
            if view.chain { continue }
            if isControlEndpoint, entries.first?.trb.trb.kind == .setupStage,
                !entries.contains(where: { $0.trb.trb.kind == .statusStage })
            {
                continue
            }
            var descriptor = TransferDescriptor(
                entries: entries, start: start, end: position, length: length)
            try descriptor.takeTrailingLink(memory)
            return .complete(descriptor)
        }
        return .incomplete
    }

    /// FreeBSD ends each TD with a Link TRB that is to interrupt: it belongs to the transfer before
    /// it, since nothing else may come for long.
    private mutating func takeTrailingLink(_ memory: GuestMemory) throws(DMAError) {
        guard let trb = try end.fetch(memory), trb.kind == .link else { return }
        let link = LinkTRB(trb: trb)
        guard link.interruptOnCompletion else { return }
        entries.append(Entry(address: end.address, trb: TransferTRB(trb: trb), position: end))
        end.follow(link)
    }

    /// Which TRB may follow which (xHCI 4.11.2.2, 4.11.7).
    private static func isAllowed(
        _ kind: TRB.Kind, after entries: [Entry], isControlEndpoint: Bool
    ) -> Bool {
        guard isControlEndpoint else {
            return kind == .normal || kind == .eventData || kind == .noOp
        }
        // Links do not count: an entry for one is there only for its interrupt.
        let last = entries.last { $0.trb.trb.kind != .link }
        guard let last else { return kind == .setupStage || kind == .noOp }
        let isChained = last.trb.chain
        switch last.trb.trb.kind {
        case .setupStage:
            return kind == .dataStage || kind == .statusStage
        case .dataStage, .normal:
            return isChained ? kind == .normal || kind == .eventData : kind == .statusStage
        case .statusStage:
            return isChained && kind == .eventData
        case .eventData:
            let hadStatus = entries.contains { $0.trb.trb.kind == .statusStage }
            if isChained { return kind == .normal || kind == .eventData }
            return !hadStatus && kind == .statusStage
        default:
            return false
        }
    }
}
