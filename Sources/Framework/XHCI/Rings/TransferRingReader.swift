// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// Reads one TD from a transfer ring (xHCI 4.9.2, 4.11).
///
/// A TD whose last TRB the guest has not yet written is not returned: the endpoint reads it again
/// after the next doorbell. A malformed TD is returned with its outcome, a TRB Error.
struct TransferRingReader {
    private var position: RingPosition
    private var descriptor: TransferDescriptor
    /// Data bytes of the TRBs so far.
    private var dataLength = 0
    private var linkCount = 0
    /// TRBs loaded so far, including the last one, even if the guest still owns it.
    private var fetchCount = 0

    private enum ReadError: Error {
        /// The guest still owns the next TRB.
        case incomplete
        /// The last entry violates the rules for TDs of this endpoint type.
        case malformed
    }

    private init(_ position: RingPosition, _ start: PartialTransfer) {
        self.position = position
        descriptor = TransferDescriptor(end: position, start: start)
    }

    /// Reads the TD at a position of a ring.
    ///
    /// - Parameters:
    ///   - start: the progress that an earlier execution made in the first TRB.
    ///   - request: the direction of the control request in progress, if further Data Stage TDs may
    ///     follow.
    ///   - budget: reduced by one for each TRB loaded.
    /// - Returns: `nil` if the TD is not complete.
    static func read(
        _ kind: EndpointKind, at position: RingPosition, start: PartialTransfer,
        continuing request: Direction?, _ bus: SystemBus, budget: inout Int
    ) -> TransferDescriptor? {
        var reader = TransferRingReader(position, start)
        defer { budget -= reader.fetchCount }
        do throws(ReadError) {
            switch kind {
            case .control: try reader.readControl(continuing: request, bus)
            case .isochronousIn, .isochronousOut:
                try reader.readIsochronous(isIn: kind == .isochronousIn, bus)
            default: try reader.readChain(isIn: kind == .bulkIn || kind == .interruptIn, bus)
            }
        } catch {
            switch error {
            case .incomplete: return nil
            case .malformed:
                reader.descriptor.outcome = .failed(
                    .trbError, transferred: 0, entry: reader.descriptor.entries.count - 1)
            }
        }
        reader.descriptor.end = reader.position
        return reader.descriptor
    }

    // MARK: - TDs by endpoint type

    /// Reads a bulk or interrupt TD: Normal TRBs up to the first one without CH (xHCI 4.11.2.1).
    private mutating func readChain(isIn: Bool, _ bus: SystemBus) throws(ReadError) {
        guard var trb = try readStart(bus) else { return }
        while true {
            switch trb.trb.kind {
            case .normal: try count(trb, isIn: isIn)
            case .noOp, .eventData: break
            default: throw .malformed
            }
            guard trb.chain else { break }
            trb = try next(bus)
        }
        finishWithoutDevice(unless: .normal)
    }

    /// Reads the TDs of a whole control transfer, or one TD of a transfer whose Data Stage the
    /// guest queues in several TDs (xHCI 4.11.2.2).
    ///
    /// - Parameter request: the direction of the request in progress.
    private mutating func readControl(
        continuing request: Direction?, _ bus: SystemBus
    ) throws(ReadError) {
        guard let trb = try readStart(bus) else { return }
        switch (trb.trb.kind, request) {
        case (.noOp, _): finishWithoutDevice(unless: .setupStage)
        case (.setupStage, _): try readRequest(trb, bus)
        case (.dataStage, let direction?), (.normal, let direction?):
            try readDataStage(trb, direction, bus)
            descriptor.stages = .data
        case (.statusStage, .some):
            try readStatusStage(trb, bus)
            descriptor.stages = .status
        default: throw .malformed
        }
    }

    /// Reads a Setup Stage TD, an optional Data Stage TD and the Status Stage TD.
    ///
    /// A driver whose Data Stage TD is shorter than wLength and has IOC set may wait for its event
    /// before it queues the next Data Stage TD. Therefore, if no Status Stage follows such a TD,
    /// the Setup and Data Stage are returned without it.
    private mutating func readRequest(_ setup: TransferTRB, _ bus: SystemBus) throws(ReadError) {
        guard setup.isImmediateData, setup.length == 8 else { throw .malformed }
        let packet = SetupPacket(wire: setup.parameter)
        descriptor.stages = .all
        let trb = try nextStage(bus)
        guard trb.trb.kind == .dataStage else {
            try readStatusStage(trb, bus)
            return
        }
        let last = try readDataStage(trb, packet.direction, bus)
        guard last.interruptOnCompletion, dataLength < Int(packet.length) else {
            try readStatusStage(nextStage(bus), bus)
            return
        }
        let withoutStatusStage = self
        do throws(ReadError) {
            try readStatusStage(nextStage(bus), bus)
        } catch {
            let count = fetchCount
            self = withoutStatusStage
            fetchCount = count
            descriptor.stages = .setup
        }
    }

    /// Reads a Data Stage TD.
    ///
    /// - Returns: its last TRB.
    @discardableResult
    private mutating func readDataStage(
        _ first: TransferTRB, _ direction: Direction, _ bus: SystemBus
    ) throws(ReadError) -> TransferTRB {
        var trb = first
        // The second and later Data Stage TDs may begin with a Normal TRB, which has no DIR.
        guard trb.trb.kind == .normal || trb.direction == (direction == .in) else {
            throw .malformed
        }
        try count(trb, isIn: direction == .in)
        while trb.chain {
            trb = try next(bus)
            switch trb.trb.kind {
            case .normal: try count(trb, isIn: direction == .in)
            case .noOp, .eventData: break
            default: throw .malformed
            }
        }
        return trb
    }

    private mutating func readStatusStage(_ first: TransferTRB, _ bus: SystemBus) throws(ReadError)
    {
        var trb = first
        guard trb.trb.kind == .statusStage else { throw .malformed }
        while trb.chain {
            trb = try next(bus)
            guard trb.trb.kind == .eventData else { throw .malformed }
        }
    }

    /// Reads the first TRB of the next stage. No Op TRBs between stages are skipped.
    private mutating func nextStage(_ bus: SystemBus) throws(ReadError) -> TransferTRB {
        while true {
            let trb = try next(bus)
            if trb.trb.kind != .noOp { return trb }
        }
    }

    /// Reads an isochronous TD: one Isoch TRB, then Normal TRBs up to the first one without CH
    /// (xHCI 4.11.2.3). A TD without an Isoch TRB uses no service interval.
    private mutating func readIsochronous(isIn: Bool, _ bus: SystemBus) throws(ReadError) {
        guard var trb = try readStart(bus) else { return }
        let isTransfer = trb.trb.kind == .isochronous
        if isTransfer { try count(trb, isIn: isIn) }
        while true {
            switch trb.trb.kind {
            case .isochronous where descriptor.entries.count == 1: break
            case .normal where isTransfer: try count(trb, isIn: isIn)
            case .noOp, .eventData: break
            default: throw .malformed
            }
            guard trb.chain else { break }
            trb = try next(bus)
        }
        finishWithoutDevice(unless: .isochronous)
    }

    /// Completes the TD without the device if it has no TRB of a type: only its events are due.
    private mutating func finishWithoutDevice(unless kind: TRB.Kind) {
        for index in descriptor.entries.indices where descriptor.entries[index].trb.kind == kind {
            return
        }
        descriptor.outcome = .completed(transferred: 0)
    }

    /// Adds the data of a TRB. Immediate data (IDT) is valid only for OUT, and at most 8 bytes.
    private mutating func count(_ trb: TransferTRB, isIn: Bool) throws(ReadError) {
        dataLength += trb.length
        guard dataLength <= XHCILimits.bytesPerTD,
            !trb.isImmediateData || (trb.length <= 8 && !isIn)
        else { throw .malformed }
    }

    // MARK: - TRBs

    /// Reads the first TRB; `nil` after a Link TRB with IOC, which is a TD of its own.
    private mutating func readStart(_ bus: SystemBus) throws(ReadError) -> TransferTRB? {
        let trb = try next(bus, stopsAtLinks: true)
        if trb.trb.kind == .link {
            descriptor.outcome = .completed(transferred: 0)
            return nil
        }
        return trb
    }

    /// Reads the next TRB that is no Link TRB, and appends it to the entries.
    ///
    /// - Parameter stopsAtLinks: returns a Link TRB with IOC, too.
    private mutating func next(
        _ bus: SystemBus, stopsAtLinks: Bool = false
    ) throws(ReadError) -> TransferTRB {
        while linkCount <= XHCILimits.linkTRBsPerTD {
            let trb = try fetch(bus)
            guard let link = LinkTRB(trb) else {
                append(trb, bus)
                position = position.next
                guard descriptor.entries.count <= XHCILimits.trbsPerTD else {
                    throw .malformed
                }
                return TransferTRB(trb)
            }
            linkCount += 1
            let hasEvent = TransferTRB(trb).interruptOnCompletion
            if hasEvent { append(trb, bus) }
            position = position.following(link)
            if hasEvent, stopsAtLinks { return TransferTRB(trb) }
        }
        append(TRB(), bus)
        throw .malformed
    }

    private mutating func fetch(_ bus: SystemBus) throws(ReadError) -> TRB {
        fetchCount += 1
        let fetched: TRB?
        do throws(DMAError) {
            fetched = try bus.fetch(at: position)
        } catch {
            bus.log("transfer ring: \(error)")
            append(TRB(), bus)
            throw .malformed
        }
        guard let fetched else { throw .incomplete }
        return fetched
    }

    private mutating func append(_ trb: TRB, _ bus: SystemBus) {
        descriptor.entries.append(RingEntry(trb: trb, position: position))
        descriptor.interrupters |= bus.interrupterBit(TransferTRB(trb).interrupter)
    }
}
