// SPDX-License-Identifier: Apache-2.0

/// The events that tell of one transfer: which TRBs ask for one, with what residue (xHCI 4.10.1,
/// 4.11.5.2).
struct TransferReport {
    struct Event {
        let trb: TRB
        let interrupter: Int
        let interrupts: Bool
    }

    private(set) var events: [Event] = []
    private let transfer: TransferInFlight
    private let slot: Int
    private let endpoint: Int
    /// EDTLA: bytes since the last Event Data TRB.
    private(set) var accumulated: Int

    init(_ transfer: TransferInFlight, slot: Int, endpoint: Int) {
        self.transfer = transfer
        self.slot = slot
        self.endpoint = endpoint
        accumulated = transfer.accumulated
    }

    /// The device took or gave `moved` bytes and was content.
    ///
    /// Fewer bytes than asked for is a short packet: it is told at the TRB where it fell, if that
    /// asks for it, otherwise at the next TRB of the TD that interrupts.
    mutating func succeed(moved: Int) {
        var left = moved + transfer.skipped
        var isShort = false
        var isTold = false
        for entry in transfer.descriptor.entries {
            let trb = entry.trb
            switch trb.trb.kind {
            case .normal, .dataStage, .isoch:
                let bytes = take(trb, &left)
                let endsHere = !isShort && bytes < trb.length
                if endsHere { isShort = true }
                guard !isTold else { continue }
                if trb.interruptOnCompletion || endsHere && trb.interruptOnShortPacket {
                    tell(entry, isShort ? .shortPacket : .success, trb.length - bytes)
                    isTold = isShort
                }
            case .eventData:
                guard trb.interruptOnCompletion else { continue }
                tellEventData(entry, isShort ? .shortPacket : .success)
            case .statusStage:
                isShort = false
                isTold = false
                if trb.interruptOnCompletion { tell(entry, .success, 0) }
            default:
                if trb.interruptOnCompletion && !isTold {
                    tell(entry, isShort ? .shortPacket : .success, 0)
                }
            }
        }
    }

    /// The transfer failed after `moved` bytes: told at the TRB in which that fell, asked or not.
    mutating func fail(_ code: CompletionCode, moved: Int) {
        fail(code, entry: tellCompleted(moved: moved).entry)
    }

    /// The transfer failed because of an entry.
    mutating func fail(_ code: CompletionCode, entry: Int) {
        guard transfer.descriptor.entries.indices.contains(entry) else { return }
        let at = transfer.descriptor.entries[entry]
        tell(at, code, at.trb.movesData ? residue : 0)
    }

    /// Stop Endpoint fell into this transfer (xHCI 4.6.9).
    ///
    /// - Returns: the entry in which it stopped, and the bytes of it that were moved.
    mutating func stop(moved: Int) -> (entry: Int, bytes: Int) {
        let place = tellCompleted(moved: moved)
        let entry = transfer.descriptor.entries[place.entry]
        if entry.trb.movesData {
            tell(entry, .stopped, residue)
        } else {
            tell(entry, .stoppedLengthInvalid, 0)
        }
        return place
    }

    /// Bytes of the TRB of interest that were not moved.
    private var residue = 0

    /// Tells of the TRBs that were done before a transfer ended early, and finds the one where it
    /// did.
    private mutating func tellCompleted(moved: Int) -> (entry: Int, bytes: Int) {
        var left = moved + transfer.skipped
        let entries = transfer.descriptor.entries
        // A control transfer of which nothing moved fails in its data stage, or in its status stage
        // if it has none.
        for (index, entry) in entries.enumerated() {
            switch entry.trb.trb.kind {
            case .normal, .dataStage, .isoch:
                if left < entry.trb.length || entry.trb.length == 0 {
                    let bytes = take(entry.trb, &left)
                    residue = entry.trb.length - bytes
                    return (index, bytes)
                }
                _ = take(entry.trb, &left)
                if entry.trb.interruptOnCompletion { tell(entry, .success, 0) }
            case .eventData:
                if entry.trb.interruptOnCompletion { tellEventData(entry, .success) }
            case .statusStage:
                residue = 0
                return (index, 0)
            default:
                if entry.trb.interruptOnCompletion { tell(entry, .success, 0) }
            }
        }
        // All bytes moved and still it failed: the last data TRB is to blame.
        let last = entries.lastIndex { $0.trb.movesData } ?? entries.count - 1
        residue = 0
        return (last, entries[last].trb.length)
    }

    private mutating func take(_ trb: TransferTRB, _ left: inout Int) -> Int {
        let bytes = min(trb.length, left)
        left -= bytes
        accumulated = (accumulated + bytes) & 0xff_ffff
        return bytes
    }

    private mutating func tell(
        _ entry: TransferDescriptor.Entry, _ code: CompletionCode, _ length: Int
    ) {
        let event = TRB.transferEvent(
            code, parameter: entry.address, length: length, slot: slot, endpoint: endpoint)
        append(event, entry)
    }

    private mutating func tellEventData(
        _ entry: TransferDescriptor.Entry, _ code: CompletionCode
    ) {
        let event = TRB.transferEvent(
            code, parameter: entry.trb.buffer, length: accumulated, eventData: true, slot: slot,
            endpoint: endpoint)
        accumulated = 0
        append(event, entry)
    }

    private mutating func append(_ event: TRB, _ entry: TransferDescriptor.Entry) {
        events.append(
            Event(
                trb: event, interrupter: entry.trb.interrupterTarget,
                interrupts: !entry.trb.blockEventInterrupt))
    }
}
