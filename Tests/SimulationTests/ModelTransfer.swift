// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit

/// A TD that the simulated guest has queued, with all that the oracle needs to judge its events.
final class ModelTransfer {
    private(set) var trbs: [GuestTRB]
    private(set) var addresses: [GuestAddress]
    /// The bytes of data that each TRB stands for.
    private(set) var lengths: [Int]
    /// Where the data of each TRB is; `nil` for immediate data and TRBs without.
    private(set) var buffers: [GuestAddress?]
    /// What is queued when all TRBs so far have ended: of control requests whose Data Stage comes in
    /// pieces, these and then the Status Stage.
    var rest: [Part] = []
    /// What an OUT transfer sends.
    let bytes: [UInt8]
    let isIn: Bool
    let isControl: Bool
    /// The bytes that IN buffers hold before the device writes to them.
    static let filler: UInt8 = 0xa5

    /// The place of the last event's TRB.
    var lastPlace = -1
    /// Bytes known to have been moved.
    var progress = 0
    /// Set when a control transfer's Data stage was short.
    var shortDataStage: Int?
    /// How the last attempt failed, if it did.
    var failure: GuestEvent.Code?

    /// A TRB that is not on the ring yet.
    struct Part {
        let trb: GuestTRB
        var length = 0
        var buffer: GuestAddress?
    }

    init(
        trbs: [GuestTRB], addresses: [GuestAddress], lengths: [Int], buffers: [GuestAddress?],
        bytes: [UInt8], isIn: Bool, isControl: Bool
    ) {
        self.trbs = trbs
        self.addresses = addresses
        self.lengths = lengths
        self.buffers = buffers
        self.bytes = bytes
        self.isIn = isIn
        self.isControl = isControl
    }

    /// Whether the driver waits for nothing but to queue more.
    var wantsMore: Bool { !rest.isEmpty && lastPlace == trbs.count - 1 }

    /// Notes where the next parts were queued.
    func append(_ parts: [Part], at places: [GuestAddress]) {
        trbs += parts.map(\.trb)
        addresses += places
        lengths += parts.map(\.length)
        buffers += parts.map(\.buffer)
    }

    var requested: Int { lengths.reduce(0, +) }
    var endsWithEventData: Bool { trbs.last?.kind == .eventData }

    /// The place of the TRB that an event names.
    func place(of event: GuestEvent) -> Int? {
        if event.isEventData {
            return trbs.firstIndex { $0.kind == .eventData && $0.parameter == event.parameter }
        }
        return addresses.firstIndex(of: event.pointer)
    }

    /// The bytes that had been moved when the TRB at `place` had `residue` bytes left.
    func moved(at place: Int, residue: Int) -> Int {
        lengths[..<place].reduce(0, +) + lengths[place] - residue
    }

    /// The first `count` bytes of the buffers.
    func received(_ count: Int, from memory: GuestRAM) -> [UInt8] {
        var result: [UInt8] = []
        for (buffer, length) in zip(buffers, lengths) {
            guard let buffer, result.count < count else { continue }
            result += memory.bytes(at: buffer, count: min(length, count - result.count))
        }
        return result
    }

    /// Uses the buffers for something else, as a guest does when the TD has ended.
    func reuseBuffers(in memory: GuestRAM) {
        for (buffer, length) in zip(buffers, lengths) {
            guard let buffer else { continue }
            memory.fill(FaultyDevice.reusedByte, at: buffer, count: length)
        }
    }

    /// Whether the buffers still have what ``reuseBuffers(in:)`` has written.
    func areReusedBuffersIntact(in memory: GuestRAM) -> Bool {
        zip(buffers, lengths).allSatisfy { buffer, length in
            guard let buffer else { return true }
            return memory.bytes(at: buffer, count: length)
                .allSatisfy { $0 == FaultyDevice.reusedByte }
        }
    }

    /// Whether the buffers behind the first `count` bytes are as they were.
    func isUntouched(behind count: Int, in memory: GuestRAM) -> Bool {
        var skip = count
        for (buffer, length) in zip(buffers, lengths) {
            let skipped = min(skip, length)
            skip -= skipped
            guard let buffer, skipped < length else { continue }
            let rest = memory.bytes(at: buffer + skipped, count: length - skipped)
            if rest.contains(where: { $0 != Self.filler }) { return false }
        }
        return true
    }
}
