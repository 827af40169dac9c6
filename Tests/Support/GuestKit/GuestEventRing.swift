// SPDX-License-Identifier: Apache-2.0

public import DMA

/// The consumer's side of an event ring (xHCI 4.9.4): segments listed in a table, without Link
/// TRBs.
public final class GuestEventRing {
    public let segments: [GuestRing.Segment]
    /// The Event Ring Segment Table.
    public let table: GuestAddress
    private let memory: GuestRAM
    private var segment = 0
    private var index = 0
    private var cycle = true

    public init(_ memory: GuestRAM, segmentSizes: [Int] = [64]) {
        self.memory = memory
        segments = segmentSizes.map { count in
            GuestRing.Segment(
                address: memory.allocate(max(count, 1) * 16, alignment: 64, boundary: 65536),
                count: count)
        }
        table = memory.allocate(segmentSizes.count * 16)
        writeTable()
    }

    private func writeTable() {
        for (number, segment) in segments.enumerated() {
            memory.store(segment.address.rawValue, at: table + number * 16)
            memory.store(UInt64(segment.count), at: table + number * 16 + 8)
        }
    }

    /// The number of TRBs in all segments.
    public var capacity: Int { segments.reduce(0) { $0 + $1.count } }

    /// The address of the next event.
    public var dequeuePointer: GuestAddress { segments[segment].address + index * 16 }

    /// The value for ERDP without EHB: dequeue pointer and segment index.
    public var dequeueRegister: UInt64 { dequeuePointer.rawValue | UInt64(segment & 7) }

    /// Takes the next event off the ring; `nil` if the controller has posted none.
    public func next() -> GuestTRB? {
        let address = dequeuePointer
        let control = memory.load(UInt32.self, at: address + 12)
        guard control & 1 == (cycle ? 1 : 0) else { return nil }
        let trb = GuestTRB(
            parameter: memory.load(at: address), status: memory.load(at: address + 8),
            control: control)
        index += 1
        if index == segments[segment].count {
            index = 0
            segment += 1
            if segment == segments.count {
                segment = 0
                cycle.toggle()
            }
        }
        return trb
    }

    /// Clears the ring and starts again at its first TRB, as after a reset.
    public func clear() {
        writeTable()
        for segment in segments {
            memory.fill(0, at: segment.address, count: segment.count * 16)
        }
        segment = 0
        index = 0
        cycle = true
    }
}
