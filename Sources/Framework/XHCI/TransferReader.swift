// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// Reads one transfer descriptor from a transfer ring (xHCI 4.9.2, 4.11).
///
/// A descriptor that the guest has not finished writing is left alone: the endpoint reads it again
/// when its doorbell rings. One that breaks the rules comes out with its outcome, a TRB Error.
struct TransferReader {
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
    /// - Parameter budget: each TRB that is looked at is taken off.
    static func read(
        _ kind: EndpointKind, at position: RingPosition, start: PartialTransfer, _ bus: SystemBus,
        budget: inout Int
    ) -> TransferDescriptor? {
        var reader = TransferReader(position, start)
        defer { budget -= reader.fetches }
        do throws(End) {
            switch kind {
            case .control: try reader.readControl(bus)
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

    /// A control transfer: the Setup Stage, an optional Data Stage with what is chained to it, and
    /// the Status Stage with what is chained to that (xHCI 4.11.2.2).
    private mutating func readControl(_ bus: SystemBus) throws(End) {
        guard let setup = try readStart(bus) else { return }
        switch setup.trb.kind {
        case .noOperation:
            finishWithoutDevice(unless: .setupStage)
            return
        case .setupStage where setup.isImmediateData && setup.length == 8: break
        default: throw .malformed
        }
        descriptor.isControl = true
        var trb = try next(bus)
        while trb.trb.kind == .noOperation { trb = try next(bus) }
        if trb.trb.kind == .dataStage {
            let isIn = SetupPacket(wire: setup.parameter).direction == .in
            guard trb.direction == isIn else { throw .malformed }
            try count(trb, isIn: isIn)
            while trb.chain {
                trb = try next(bus)
                switch trb.trb.kind {
                case .normal: try count(trb, isIn: isIn)
                case .noOperation, .eventData: break
                default: throw .malformed
                }
            }
            trb = try next(bus)
        }
        while trb.trb.kind == .noOperation { trb = try next(bus) }
        guard trb.trb.kind == .statusStage else { throw .malformed }
        while trb.chain {
            trb = try next(bus)
            guard trb.trb.kind == .eventData else { throw .malformed }
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
        guard data <= Limits.bytesPerTransfer, !trb.isImmediateData || (trb.length <= 8 && !isIn)
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
        while links <= Limits.linksPerTransfer {
            let trb = try fetch(bus)
            guard let link = LinkTRB(trb) else {
                append(trb, bus)
                position = position.next
                guard descriptor.entries.count <= Limits.trbsPerTransfer else { throw .malformed }
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
            bus.note("transfer ring: \(error.reason) at \(error.address)")
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
