// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit

/// A TD of the simulated guest, with the data that the oracle needs to check its events.
final class ModelTransfer {
    private(set) var trbs: [GuestTRB]
    private(set) var addresses: [GuestAddress]
    /// The data length of each TRB.
    private(set) var lengths: [Int]
    /// The data buffer of each TRB; `nil` for immediate data and TRBs without data.
    private(set) var buffers: [GuestAddress?]
    /// TRBs that are enqueued when those on the ring have ended: further TDs of a Data Stage that
    /// is split into several, then the Status Stage.
    var pendingParts: [Part] = []
    /// The data of an OUT transfer.
    let bytes: [UInt8]
    let isIn: Bool
    let isControl: Bool
    /// The bytes that IN buffers hold before the device writes to them.
    static let filler: UInt8 = 0xa5

    /// The index of the TRB of the last event.
    var lastIndex = -1
    /// The bytes that events have reported.
    var progress = 0
    /// The length of a short Data Stage.
    var shortDataStage: Int?
    /// The completion code of the last attempt, if it failed.
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

    /// Whether all TRBs on the ring have ended and ``pendingParts`` is not empty.
    var wantsMore: Bool { !pendingParts.isEmpty && lastIndex == trbs.count - 1 }

    /// Appends parts that have been enqueued at some addresses.
    func append(_ parts: [Part], at newAddresses: [GuestAddress]) {
        trbs += parts.map(\.trb)
        addresses += newAddresses
        lengths += parts.map(\.length)
        buffers += parts.map(\.buffer)
    }

    var requested: Int { lengths.reduce(0, +) }
    var endsWithEventData: Bool { trbs.last?.kind == .eventData }

    /// The index of the TRB that an event names.
    func index(of event: GuestEvent) -> Int? {
        if event.isEventData {
            return trbs.firstIndex { $0.kind == .eventData && $0.parameter == event.parameter }
        }
        return addresses.firstIndex(of: event.pointer)
    }

    /// The number of bytes moved when the TRB at `index` has a residue.
    func moved(at index: Int, residue: Int) -> Int {
        lengths[..<index].reduce(0, +) + lengths[index] - residue
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

    /// Overwrites the buffers, as a guest that reuses them after the end of the TD.
    func reuseBuffers(in memory: GuestRAM) {
        for (buffer, length) in zip(buffers, lengths) {
            guard let buffer else { continue }
            memory.fill(FaultyDevice.reusedByte, at: buffer, count: length)
        }
    }

    /// Whether the buffers are as ``reuseBuffers(in:)`` has left them.
    func areReusedBuffersIntact(in memory: GuestRAM) -> Bool {
        zip(buffers, lengths).allSatisfy { buffer, length in
            guard let buffer else { return true }
            return memory.bytes(at: buffer, count: length)
                .allSatisfy { $0 == FaultyDevice.reusedByte }
        }
    }

    /// Whether the buffers are unchanged beyond the first `count` bytes.
    func isUntouched(beyond count: Int, in memory: GuestRAM) -> Bool {
        var skip = count
        for (buffer, length) in zip(buffers, lengths) {
            let skipped = min(skip, length)
            skip -= skipped
            guard let buffer, skipped < length else { continue }
            let tail = memory.bytes(at: buffer + skipped, count: length - skipped)
            if tail.contains(where: { $0 != Self.filler }) { return false }
        }
        return true
    }
}
