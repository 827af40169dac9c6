// SPDX-License-Identifier: Apache-2.0

/// A queue of TDs: an array with a gap at its beginning.
///
/// A `Deque` returns copies of its elements, which are large; an array yields them in place.
struct DescriptorQueue: RandomAccessCollection {
    private var elements: [TransferDescriptor] = []
    /// The index of the first element; those before it are removed.
    private var head = 0

    /// The gap is closed when it has this many elements.
    private static let gapLimit = 32

    var startIndex: Int { 0 }
    var endIndex: Int { elements.count - head }

    subscript(position: Int) -> TransferDescriptor { elements[head + position] }

    mutating func append(_ descriptor: consuming TransferDescriptor) {
        elements.append(descriptor)
    }

    mutating func setOutcome(_ outcome: TransferDescriptor.Outcome, at position: Int) {
        elements[head + position].outcome = outcome
    }

    mutating func removeFirst() -> TransferDescriptor {
        var first = TransferDescriptor(end: RingPosition(rawValue: 0))
        swap(&first, &elements[head])
        head += 1
        if head == elements.count {
            elements.removeAll(keepingCapacity: true)
            head = 0
        } else if head >= Self.gapLimit {
            elements.removeSubrange(..<head)
            head = 0
        }
        return first
    }

    /// Removes and returns the element at a position and all after it.
    mutating func removeLast(from position: Int) -> DescriptorQueue {
        var removed = DescriptorQueue()
        swap(&removed, &self)
        for element in removed.prefix(position) { append(element) }
        removed.head += count
        return removed
    }
}
