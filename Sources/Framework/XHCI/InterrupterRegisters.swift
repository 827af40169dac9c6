// SPDX-License-Identifier: Apache-2.0

/// The register set of one interrupter (xHCI 5.5.2), and what writes to it mean for its event ring.
struct InterrupterRegisters {
    /// IP.
    var isPending = false
    /// IE.
    private(set) var isEnabled = false
    /// IMODI, in units of 250 ns. The reset value is one millisecond.
    private(set) var moderationInterval: UInt32 = 4000
    /// IMODC, stored: the real counter is a deadline.
    private var moderationCounter: UInt32 = 0
    private(set) var segmentTableSize: UInt32 = 0
    private(set) var segmentTable: UInt64 = 0
    /// ERDP without EHB.
    private(set) var dequeue: UInt64 = 0
    /// EHB.
    var isHandlerBusy = false

    /// ERSTBA was written: the event ring begins anew with the next event (xHCI 4.9.4).
    var hasNewTable = false
    /// ERDP was written: events may fit that did not.
    var hasNewDequeue = false

    /// Dequeue ERST Segment Index is the low three bits.
    var dequeuePointer: UInt64 { dequeue & ~0xf }

    /// The least time between two interrupts.
    var moderation: Duration { .nanoseconds(Int64(moderationInterval) * 250) }

    func read(_ register: MMIORegister.Interrupter) -> UInt32 {
        switch register {
        case .management: (isPending ? 1 : 0) | (isEnabled ? 2 : 0)
        case .moderation: moderationInterval | moderationCounter << 16
        case .segmentTableSize: segmentTableSize
        case .reserved: 0
        case .segmentTableLow: UInt32(truncatingIfNeeded: segmentTable)
        case .segmentTableHigh: UInt32(truncatingIfNeeded: segmentTable >> 32)
        case .dequeueLow: UInt32(truncatingIfNeeded: dequeue) | (isHandlerBusy ? 8 : 0)
        case .dequeueHigh: UInt32(truncatingIfNeeded: dequeue >> 32)
        }
    }

    mutating func write(
        _ register: MMIORegister.Interrupter, _ value: UInt32, enabled mask: UInt32
    ) {
        let set = value & mask
        switch register {
        case .management:
            if set[bit: 0] { isPending = false }
            if mask[bit: 1] { isEnabled = value[bit: 1] }
        case .moderation:
            let old = moderationInterval | moderationCounter << 16
            let new = old & ~mask | set
            moderationInterval = new[bits: 0...15]
            moderationCounter = new[bits: 16...31]
        case .segmentTableSize:
            segmentTableSize = (segmentTableSize & ~mask | set) & 0xffff
        case .reserved:
            break
        case .segmentTableLow:
            segmentTable.setLow(value & ~0x3f, mask & ~0x3f)
            hasNewTable = true
        case .segmentTableHigh:
            segmentTable.setHigh(value, mask)
            hasNewTable = true
        case .dequeueLow:
            dequeue.setLow(value & ~8, mask & ~8)
            if set[bit: 3] { isHandlerBusy = false }
            hasNewDequeue = true
        case .dequeueHigh:
            dequeue.setHigh(value, mask)
            hasNewDequeue = true
        }
    }
}

extension UInt64 {
    /// Replaces the bits of the low half that `mask` covers.
    mutating func setLow(_ value: UInt32, _ mask: UInt32) {
        self = self & ~UInt64(mask) | UInt64(value & mask)
    }

    /// Replaces the bits of the high half that `mask` covers.
    mutating func setHigh(_ value: UInt32, _ mask: UInt32) {
        self = self & ~(UInt64(mask) << 32) | UInt64(value & mask) << 32
    }
}
