// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// Reads one transfer descriptor from a transfer ring (xHCI 4.9.2, 4.11).
///
/// A descriptor that the guest has not finished writing is left alone: the endpoint reads it again
/// when its doorbell rings. One that breaks the rules comes out with its outcome, a TRB Error.
struct TransferRingReader {
    private var position: RingPosition
    private var descriptor: TransferDescriptor
    private var data = 0
    private var links = 0
    /// TRBs looked at, whatever came of them.
    private var fetches = 0

    /// Why no more can be read.
    private enum End: Error {
        /// The next TRB is still the guest's.
        case notYet
        /// The last entry breaks the rules.
        case malformed
    }

    private init(_ position: RingPosition, _ start: PartialTransfer) {
        self.position = position
        descriptor = TransferDescriptor(end: position, start: start)
    }

    /// The descriptor at a place of a ring, if there is a whole one.
    ///
    /// - Parameters:
    ///   - request: the direction of a control request whose Data Stage is not complete.
    ///   - budget: each TRB that is looked at is taken off.
    static func read(
        _ kind: EndpointKind, at position: RingPosition, start: PartialTransfer,
        continuing request: Direction?, _ bus: SystemBus, budget: inout Int
    ) -> TransferDescriptor? {
        var reader = TransferRingReader(position, start)
        defer { budget -= reader.fetches }
        do throws(End) {
            switch kind {
            case .control: try reader.readControl(continuing: request, bus)
            case .isochronousIn, .isochronousOut:
                try reader.readIsochronous(isIn: kind == .isochronousIn, bus)
            default: try reader.readChain(isIn: kind == .bulkIn || kind == .interruptIn, bus)
            }
        } catch {
            switch error {
            case .notYet: return nil
            case .malformed:
                reader.descriptor.outcome = .failed(
                    .trbError, transferred: 0, entry: reader.descriptor.entries.count - 1)
            }
        }
        reader.descriptor.end = reader.position
        return reader.descriptor
    }

    // MARK: - Kinds of descriptors

    /// A bulk or interrupt transfer: Normal TRBs up to one without a chain bit.
    private mutating func readChain(isIn: Bool, _ bus: SystemBus) throws(End) {
        guard var trb = try readStart(bus) else { return }
        while true {
            switch trb.trb.kind {
            case .normal: try count(trb, isIn: isIn)
            case .noOperation, .eventData: break
            default: throw .malformed
            }
            guard trb.chain else { break }
            trb = try next(bus)
        }
        finishWithoutDevice(unless: .normal)
    }

    /// A control transfer, or a part of one whose Data Stage comes in pieces (xHCI 4.11.2.2).
    ///
    /// - Parameter request: the direction of the request that the part may be of.
    private mutating func readControl(
        continuing request: Direction?, _ bus: SystemBus
    ) throws(End) {
        guard let trb = try readStart(bus) else { return }
        switch (trb.trb.kind, request) {
        case (.noOperation, _): finishWithoutDevice(unless: .setupStage)
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

    /// The Setup Stage, an optional Data Stage with what is chained to it, and the Status Stage with
    /// what is chained to that.
    ///
    /// A driver that has given less room than wLength and wants an event for it may wait for that
    /// before it gives more. So where the Status Stage does not follow, this is only a part.
    private mutating func readRequest(_ setup: TransferTRB, _ bus: SystemBus) throws(End) {
        guard setup.isImmediateData, setup.length == 8 else { throw .malformed }
        let packet = SetupPacket(wire: setup.parameter)
        descriptor.stages = .all
        let trb = try nextStage(bus)
        guard trb.trb.kind == .dataStage else {
            try readStatusStage(trb, bus)
            return
        }
        let last = try readDataStage(trb, packet.direction, bus)
        guard last.interruptOnCompletion, data < Int(packet.length) else {
            try readStatusStage(nextStage(bus), bus)
            return
        }
        let piece = self
        do throws(End) {
            try readStatusStage(nextStage(bus), bus)
        } catch {
            let count = fetches
            self = piece
            fetches = count
            descriptor.stages = .setup
        }
    }

    /// The Data Stage, or a piece of it, with what is chained to it.
    ///
    /// - Returns: the last TRB.
    @discardableResult
    private mutating func readDataStage(
        _ first: TransferTRB, _ direction: Direction, _ bus: SystemBus
    ) throws(End) -> TransferTRB {
        var trb = first
        // A further piece may be of Normal TRBs, which have no direction.
        guard trb.trb.kind == .normal || trb.direction == (direction == .in) else {
            throw .malformed
        }
        try count(trb, isIn: direction == .in)
        while trb.chain {
            trb = try next(bus)
            switch trb.trb.kind {
            case .normal: try count(trb, isIn: direction == .in)
            case .noOperation, .eventData: break
            default: throw .malformed
            }
        }
        return trb
    }

    private mutating func readStatusStage(_ first: TransferTRB, _ bus: SystemBus) throws(End) {
        var trb = first
        guard trb.trb.kind == .statusStage else { throw .malformed }
        while trb.chain {
            trb = try next(bus)
            guard trb.trb.kind == .eventData else { throw .malformed }
        }
    }

    /// The first TRB of the next stage.
    private mutating func nextStage(_ bus: SystemBus) throws(End) -> TransferTRB {
        while true {
            let trb = try next(bus)
            if trb.trb.kind != .noOperation { return trb }
        }
    }

    /// An isochronous transfer: one Isoch TRB, then Normal TRBs up to one without a chain bit
    /// (xHCI 4.11.2.3). What has no Isoch TRB takes no service interval.
    private mutating func readIsochronous(isIn: Bool, _ bus: SystemBus) throws(End) {
        guard var trb = try readStart(bus) else { return }
        let isTransfer = trb.trb.kind == .isochronous
        if isTransfer { try count(trb, isIn: isIn) }
        while true {
            switch trb.trb.kind {
            case .isochronous where descriptor.entries.count == 1: break
            case .normal where isTransfer: try count(trb, isIn: isIn)
            case .noOperation, .eventData: break
            default: throw .malformed
            }
            guard trb.chain else { break }
            trb = try next(bus)
        }
        finishWithoutDevice(unless: .isochronous)
    }

    /// A descriptor that has no TRB of the kind needs no device, only its events.
    private mutating func finishWithoutDevice(unless kind: TRB.Kind) {
        for index in descriptor.entries.indices where descriptor.entries[index].trb.kind == kind {
            return
        }
        descriptor.outcome = .completed(transferred: 0)
    }

    /// Checks a TRB with data. Immediate data only goes out, and no more than fits.
    private mutating func count(_ trb: TransferTRB, isIn: Bool) throws(End) {
        data += trb.length
        guard data <= XHCILimits.bytesPerTD,
            !trb.isImmediateData || (trb.length <= 8 && !isIn)
        else { throw .malformed }
    }

    // MARK: - TRBs

    /// The first TRB; `nil` after a Link TRB that wants an event, which is a descriptor by itself.
    private mutating func readStart(_ bus: SystemBus) throws(End) -> TransferTRB? {
        let trb = try next(bus, stopsAtLinks: true)
        if trb.trb.kind == .link {
            descriptor.outcome = .completed(transferred: 0)
            return nil
        }
        return trb
    }

    /// The next TRB that is no Link TRB, appended to the entries.
    private mutating func next(
        _ bus: SystemBus, stopsAtLinks: Bool = false
    ) throws(End) -> TransferTRB {
        while links <= XHCILimits.linkTRBsPerTD {
            let trb = try fetch(bus)
            guard let link = LinkTRB(trb) else {
                append(trb, bus)
                position = position.next
                guard descriptor.entries.count <= XHCILimits.trbsPerTD else {
                    throw .malformed
                }
                return TransferTRB(trb)
            }
            links += 1
            let wantsEvent = TransferTRB(trb).interruptOnCompletion
            if wantsEvent { append(trb, bus) }
            position = position.following(link)
            if wantsEvent, stopsAtLinks { return TransferTRB(trb) }
        }
        append(TRB(), bus)
        throw .malformed
    }

    private mutating func fetch(_ bus: SystemBus) throws(End) -> TRB {
        fetches += 1
        let fetched: TRB?
        do throws(DMAError) {
            fetched = try bus.fetch(at: position)
        } catch {
            bus.log("transfer ring: \(error)")
            append(TRB(), bus)
            throw .malformed
        }
        guard let fetched else { throw .notYet }
        return fetched
    }

    private mutating func append(_ trb: TRB, _ bus: SystemBus) {
        descriptor.entries.append(RingEntry(trb: trb, position: position))
        descriptor.interrupters |= bus.interrupterBit(TransferTRB(trb).interrupter)
    }
}
