// SPDX-License-Identifier: Apache-2.0

public import DMA

/// The producer's side of a command or transfer ring (xHCI 4.9.2, 4.9.3): segments that end in Link
/// TRBs, of which the last has TC set.
///
/// As in Linux, the cycle bit of the first pushed TRB is written last, and a Link TRB is handed
/// over only when a TRB follows it.
public final class GuestRing {
    /// A segment of a ring; its last TRB is a Link TRB.
    public struct Segment: Sendable {
        public let address: GuestAddress
        public let count: Int
    }

    public let segments: [Segment]
    /// The producer cycle state.
    public private(set) var cycle = true
    /// Flags of the Link TRBs written from now on, besides TC and CH.
    public var linkFlags: GuestTRB.Flags = []
    private let memory: GuestRAM
    private var segment = 0
    private var index = 0
    /// The first pushed TRB while its cycle bit is inverted: its address and final control word.
    private var withheld: (address: GuestAddress, control: UInt32)?

    /// - Parameter segmentSizes: TRBs in each segment, links included.
    public init(_ memory: GuestRAM, segmentSizes: [Int] = [32]) {
        precondition(segmentSizes.allSatisfy { $0 >= 2 }, "a segment has a TRB and a link")
        self.memory = memory
        segments = segmentSizes.map { count in
            Segment(
                address: memory.allocate(count * 16, alignment: 64, boundary: 65536), count: count)
        }
    }

    /// The first TRB.
    public var start: GuestAddress { segments[0].address }

    /// The number of TRBs that fit, Link TRBs not counted.
    public var capacity: Int { segments.reduce(0) { $0 + $1.count - 1 } }

    /// The address of the next TRB that is not a Link TRB.
    public var enqueuePointer: GuestAddress {
        index == segments[segment].count - 1
            ? segments[(segment + 1) % segments.count].address
            : segments[segment].address + index * 16
    }

    /// The address of the next TRB, which may be a Link TRB.
    public var end: GuestAddress { segments[segment].address + index * 16 }

    /// The cycle state of ``enqueuePointer``.
    public var enqueueCycle: Bool {
        index == segments[segment].count - 1 && segment == segments.count - 1 ? !cycle : cycle
    }

    /// Writes TRBs and hands them over to the controller together.
    ///
    /// - Parameter handingOver: whether the cycle bit of the first TRB is written now, or by
    ///   ``handOver()``.
    /// - Returns: the addresses of the TRBs.
    @discardableResult
    public func push(_ trbs: [GuestTRB], handingOver: Bool = true) -> [GuestAddress] {
        precondition(withheld == nil, "a TRB is withheld already")
        var addresses: [GuestAddress] = []
        var previousIsChained = false
        for (number, trb) in trbs.enumerated() {
            if index == segments[segment].count - 1 { writeLink(chained: previousIsChained) }
            let address = segments[segment].address + index * 16
            let control = trb.control & ~1 | (cycle ? 1 : 0)
            memory.store(trb.parameter, at: address)
            memory.store(trb.status, at: address + 8)
            memory.store(number == 0 ? control ^ 1 : control, at: address + 12)
            if number == 0 { withheld = (address, control) }
            addresses.append(address)
            previousIsChained = trb.isChained
            index += 1
        }
        if handingOver { handOver() }
        return addresses
    }

    @discardableResult
    public func push(_ trb: GuestTRB) -> GuestAddress {
        let addresses = push([trb])
        return addresses[0]
    }

    /// Writes the cycle bit of the withheld TRB.
    public func handOver() {
        guard let held = withheld else { return }
        memory.store(held.control, at: held.address + 12)
        withheld = nil
    }

    /// Clears the ring and starts again at its first TRB, as after a reset.
    public func clear() {
        for segment in segments {
            memory.fill(0, at: segment.address, count: segment.count * 16)
        }
        segment = 0
        index = 0
        cycle = true
        withheld = nil
    }

    private func writeLink(chained: Bool) {
        let isLast = segment == segments.count - 1
        let next = segments[isLast ? 0 : segment + 1].address
        var flags = linkFlags
        if isLast { flags.insert(.toggleCycle) }
        if chained { flags.insert(.chain) }
        let link = GuestTRB.link(to: next, flags)
        let address = segments[segment].address + index * 16
        memory.store(link.parameter, at: address)
        memory.store(link.status, at: address + 8)
        memory.store(link.control | (cycle ? 1 : 0), at: address + 12)
        if isLast { cycle.toggle() }
        segment = isLast ? 0 : segment + 1
        index = 0
    }
}
