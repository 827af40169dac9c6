// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
internal import USB

/// A transfer ring at work (xHCI 4.9.2): where it is read, and what of it is not finished.
struct TransferQueue {
    /// The next TRB to read.
    var ring: RingPosition
    /// What was done of the TRB there already.
    var progress = PartialTransfer.nothing
    /// What was read and has not had its events, in order.
    var inFlight: Deque<TransferDescriptor> = []
    var bytesInFlight = 0
    /// Nothing before this place is with the device.
    private var firstPending = 0

    init(_ ring: RingPosition) { self.ring = ring }

    mutating func append(_ descriptor: consuming TransferDescriptor) {
        bytesInFlight += descriptor.length
        inFlight.append(descriptor)
    }

    mutating func removeFirst() -> TransferDescriptor {
        let first = inFlight.removeFirst()
        bytesInFlight -= first.length
        firstPending = max(0, firstPending - 1)
        return first
    }

    /// Where a transfer stands that the device has. Devices answer in order, so it is the first
    /// nearly always.
    mutating func place(of id: Transfer.ID) -> Int? {
        while firstPending < inFlight.count, inFlight[firstPending].outcome != nil {
            firstPending += 1
        }
        guard firstPending < inFlight.count else { return nil }
        if inFlight[firstPending].id == id { return firstPending }
        return inFlight.firstIndex { $0.id == id && $0.outcome == nil }
    }

    /// Goes back to the first TRB that is not finished.
    ///
    /// - Returns: what was read since.
    mutating func rewind() -> Deque<TransferDescriptor> {
        let taken = inFlight
        inFlight.removeAll()
        firstPending = 0
        bytesInFlight = 0
        if let first = taken.first, let entry = first.entries.first {
            ring = entry.position
            progress = first.start
        }
        return taken
    }
}
