// SPDX-License-Identifier: Apache-2.0

/// Transfer descriptors in order: new ones come to the end, finished ones leave at the front.
///
/// It is an array with a gap at its beginning. A `Deque` would do, but hands out copies of its
/// elements, which are large, where an array lends them.
struct DescriptorQueue: RandomAccessCollection {
    private var elements: [TransferDescriptor] = []
    /// Elements before this one have left.
    private var head = 0

    /// A gap that is as large is closed.
    private static let gapLimit = 32

    var startIndex: Int { 0 }
    var endIndex: Int { elements.count - head }

    subscript(place: Int) -> TransferDescriptor { elements[head + place] }

    mutating func append(_ descriptor: consuming TransferDescriptor) {
        elements.append(descriptor)
    }

    mutating func setOutcome(_ outcome: TransferDescriptor.Outcome, at place: Int) {
        elements[head + place].outcome = outcome
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

    /// Takes the element at a place and all behind it.
    mutating func removeLast(from place: Int) -> DescriptorQueue {
        var taken = DescriptorQueue()
        swap(&taken, &self)
        for element in taken.prefix(place) { append(element) }
        taken.head += count
        return taken
    }
}
