// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A transfer ring at work (xHCI 4.9.2): where it is read, and what of it is not finished.
struct TransferQueue {
    /// The next TRB to read.
    var ring: RingPosition
    /// What was done of the TRB there already.
    var progress = PartialTransfer.nothing
    /// The transfer there has halted the endpoint.
    var hasFailed = false
    /// What was read and has not had its events, in order.
    private(set) var inFlight = DescriptorQueue()
    /// Nothing before this place is with the device.
    private var firstPending = 0

    init(_ ring: RingPosition) { self.ring = ring }

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

    /// Notes how the transfer at a place ended.
    mutating func setOutcome(_ outcome: TransferDescriptor.Outcome, at place: Int) {
        inFlight.setOutcome(outcome, at: place)
    }

    mutating func append(_ descriptor: consuming TransferDescriptor) {
        inFlight.append(descriptor)
    }

    mutating func removeFirst() -> TransferDescriptor {
        firstPending = max(0, firstPending - 1)
        return inFlight.removeFirst()
    }

    /// Whether the device has none of it.
    var isSettled: Bool { inFlight.allSatisfy { $0.outcome != nil } }

    /// How many have finished before the first that has not.
    var finishedCount: Int {
        inFlight.prefix { descriptor in
            switch descriptor.outcome {
            case .completed, .failed: true
            case .cancelled, nil: false
            }
        }.count
    }

    /// Goes back to the first TRB of what was read, or to that of the transfer at a place.
    ///
    /// - Returns: what was read since.
    mutating func rewind(to place: Int) -> DescriptorQueue {
        let taken = inFlight.removeLast(from: place)
        firstPending = 0
        if let first = taken.first, let entry = first.entries.first {
            ring = entry.position
            progress = first.start
        }
        return taken
    }
}

/// What an endpoint has in flight, in all its queues.
struct PipelineLoad {
    private(set) var transfers = 0
    private(set) var bytes = 0
    private(set) var trbs = 0

    mutating func add(_ descriptor: borrowing TransferDescriptor) {
        transfers += 1
        bytes += descriptor.length
        trbs += descriptor.entries.count
    }

    mutating func remove(_ descriptor: borrowing TransferDescriptor) {
        transfers -= 1
        bytes -= descriptor.length
        trbs -= descriptor.entries.count
    }
}
