// SPDX-License-Identifier: Apache-2.0

/// The TRBs of a TD in ring order, with their positions.
///
/// The first three are stored inline: most TDs have one or two TRBs and most control transfers
/// three, so these need no heap allocation.
struct RingEntries: RandomAccessCollection {
    private var first = RingEntry.none
    private var second = RingEntry.none
    private var third = RingEntry.none
    private var rest: [RingEntry] = []
    private(set) var endIndex = 0

    var startIndex: Int { 0 }

    subscript(index: Int) -> RingEntry {
        precondition(indices.contains(index), "entry \(index) of \(endIndex)")
        switch index {
        case 0: return first
        case 1: return second
        case 2: return third
        default: return rest[index - 3]
        }
    }

    mutating func append(_ entry: RingEntry) {
        switch endIndex {
        case 0: first = entry
        case 1: second = entry
        case 2: third = entry
        default: rest.append(entry)
        }
        endIndex += 1
    }
}

extension RingEntry {
    fileprivate static let none = RingEntry(trb: TRB(), position: RingPosition(rawValue: 0))
}
