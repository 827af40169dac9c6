// SPDX-License-Identifier: Apache-2.0

/// The registers of one interrupter (xHCI 5.5.2) and its interrupt moderation counter.
///
/// ``EventRing/raiseInterrupt(_:registers:now:)`` decides when an interrupt is raised.
struct InterrupterRegisters {
    /// IMAN.IP.
    var isPending = false
    /// IMAN.IE.
    private(set) var isEnabled = false
    /// IMODI: the minimum time between two interrupts, in units of 250 ns.
    private(set) var moderationInterval: UInt32 = 4000
    /// The time at which IMODC reaches zero.
    private(set) var moderationEnd: Duration = .zero
    /// ERSTSZ.
    private(set) var segmentCount: UInt32 = 0
    /// ERSTBA.
    private(set) var segmentTable: UInt64 = 0
    /// ERSTBA was written, and the event ring has not yet loaded the segment table.
    var isTableWritten = false
    /// The Event Ring Dequeue Pointer, without DESI and EHB.
    private(set) var dequeuePointer: UInt64 = 0
    /// DESI.
    private var dequeueSegment: UInt32 = 0
    /// EHB: the driver's handler runs, and no further interrupt is raised.
    var isHandlerBusy = false

    private static let tick = Duration.nanoseconds(250)

    // MARK: - IMAN

    var management: UInt32 { (isPending ? 1 : 0) | (isEnabled ? 2 : 0) }

    mutating func writeManagement(_ value: UInt32) {
        if value[bit: 0] { isPending = false }
        isEnabled = value[bit: 1]
    }

    // MARK: - IMOD

    func moderation(now: Duration) -> UInt32 {
        let remaining = moderationEnd - now
        guard remaining > .zero else { return moderationInterval }
        let (seconds, attoseconds) = remaining.components
        let ticks = seconds > 0 ? 0xffff : min(attoseconds / 250_000_000_000, 0xffff)
        return moderationInterval | UInt32(ticks) << 16
    }

    mutating func writeModeration(_ value: UInt32, now: Duration) {
        moderationInterval = value[bits: 0...15]
        moderationEnd = now + Self.tick * Int(value[bits: 16...31])
    }

    /// Loads IMODC with IMODI, as each interrupt does (xHCI 4.17.2).
    mutating func startModeration(now: Duration) {
        moderationEnd = now + Self.tick * Int(moderationInterval)
    }

    // MARK: - Event ring

    mutating func writeSegmentCount(_ value: UInt32) { segmentCount = value & 0xffff }

    mutating func writeTableLow(_ value: UInt32) {
        segmentTable.lowHalf = value & ~0x3f
        isTableWritten = true
    }

    mutating func writeTableHigh(_ value: UInt32) {
        segmentTable.highHalf = value
        isTableWritten = true
    }

    var dequeueLow: UInt32 {
        dequeuePointer.lowHalf | dequeueSegment | (isHandlerBusy ? 8 : 0)
    }

    mutating func writeDequeueLow(_ value: UInt32) {
        dequeuePointer.lowHalf = value & ~0xf
        dequeueSegment = value[bits: 0...2]
        if value[bit: 3] { isHandlerBusy = false }
    }

    mutating func writeDequeueHigh(_ value: UInt32) {
        dequeuePointer.highHalf = value
    }
}
