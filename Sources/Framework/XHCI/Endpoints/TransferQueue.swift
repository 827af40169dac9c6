// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A transfer ring in use (xHCI 4.9.2): its dequeue pointer, and the TDs in flight.
struct TransferQueue {
    /// The next TRB to read.
    var dequeuePointer: RingPosition
    /// The part of that TRB that has been executed.
    var progress = PartialTransfer.nothing
    /// Whether the TD at the dequeue pointer has halted the endpoint.
    var hasFailed = false
    /// TDs that were read and are not retired, in ring order.
    private(set) var inFlight = DescriptorQueue()
    /// Every TD before this position has its outcome.
    private var firstPending = 0

    init(_ dequeuePointer: RingPosition) { self.dequeuePointer = dequeuePointer }

    /// The position of the TD of a transfer that the device still has; `nil` if there is none.
    /// Devices complete in order, so the first TD without an outcome is tried first.
    mutating func position(of id: Transfer.ID) -> Int? {
        while firstPending < inFlight.count, inFlight[firstPending].outcome != nil {
            firstPending += 1
        }
        guard firstPending < inFlight.count else { return nil }
        if inFlight[firstPending].id == id { return firstPending }
        return inFlight.firstIndex { $0.id == id && $0.outcome == nil }
    }

    /// Records the outcome of the TD at a position.
    mutating func setOutcome(_ outcome: TransferDescriptor.Outcome, at position: Int) {
        inFlight.setOutcome(outcome, at: position)
    }

    mutating func append(_ descriptor: consuming TransferDescriptor) {
        inFlight.append(descriptor)
    }

    mutating func removeFirst() -> TransferDescriptor {
        firstPending = max(0, firstPending - 1)
        return inFlight.removeFirst()
    }

    /// Whether the device has no TD of the queue.
    var isDrained: Bool { inFlight.allSatisfy { $0.outcome != nil } }

    /// The number of TDs at the front that completed or failed. A cancelled or pending TD ends the
    /// count.
    var completedCount: Int {
        inFlight.prefix { descriptor in
            switch descriptor.outcome {
            case .completed, .failed: true
            case .cancelled, nil: false
            }
        }.count
    }

    /// Moves the dequeue pointer back to the first TRB of the TD at a position.
    ///
    /// - Returns: that TD and those after it, which are not in flight any more.
    mutating func rewind(to position: Int) -> DescriptorQueue {
        let removed = inFlight.removeLast(from: position)
        firstPending = 0
        if let first = removed.first, let entry = first.entries.first {
            dequeuePointer = entry.position
            progress = first.start
        }
        return removed
    }
}

/// The TDs, bytes and TRBs that an endpoint has in flight, in all its queues.
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
