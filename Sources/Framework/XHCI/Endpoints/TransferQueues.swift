// SPDX-License-Identifier: Apache-2.0

/// The transfer queues of an endpoint: one, or one for each stream used so far.
///
/// The first is stored inline: nearly all endpoints have no other.
struct TransferQueues {
    private var first = TransferQueue(RingPosition(rawValue: 0))
    private var others: [TransferQueue] = []
    private(set) var count = 0

    var indices: Range<Int> { 0..<count }

    mutating func append(_ queue: TransferQueue) {
        if count == 0 { first = queue } else { others.append(queue) }
        count += 1
    }

    subscript(index: Int) -> TransferQueue {
        _read {
            if index == 0 { yield first } else { yield others[index - 1] }
        }
        _modify {
            if index == 0 { yield &first } else { yield &others[index - 1] }
        }
    }

    /// Whether the device has no TD of any queue.
    var areDrained: Bool { first.isDrained && others.allSatisfy(\.isDrained) }
}
