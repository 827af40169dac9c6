// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

/// A transfer ring at work (xHCI 4.9.2): where it is read, and what of it is not finished.
struct TransferQueue {
    /// The next TRB to read.
    var ring: RingPosition
    /// What was done of the TRB there already.
    var progress = PartialTransfer.nothing
    /// What was read and has not had its events, in order.
    var inFlight: Deque<TransferDescriptor> = []
    var bytesInFlight = 0

    init(_ ring: RingPosition) { self.ring = ring }

    mutating func append(_ descriptor: TransferDescriptor) {
        bytesInFlight += descriptor.length
        inFlight.append(descriptor)
    }

    mutating func removeFirst() {
        bytesInFlight -= inFlight.removeFirst().length
    }

    /// Goes back to the first TRB that is not finished.
    ///
    /// - Returns: what was read since.
    mutating func rewind() -> Deque<TransferDescriptor> {
        let taken = inFlight
        inFlight.removeAll()
        bytesInFlight = 0
        if let first = taken.first, let entry = first.entries.first {
            ring = entry.position
            progress = first.start
        }
        return taken
    }
}
