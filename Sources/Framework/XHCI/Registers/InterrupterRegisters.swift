// SPDX-License-Identifier: Apache-2.0

/// The registers of one interrupter (xHCI 5.5.2) with the clock of its moderation.
struct InterrupterRegisters {
    /// IMAN.IP.
    var isPending = false
    /// IMAN.IE.
    private(set) var isEnabled = false
    /// IMODI: 250 ns each between two interrupts.
    private(set) var moderationInterval: UInt32 = 4000
    /// When IMODC reaches zero.
    private(set) var quietUntil: Duration = .zero
    /// ERSTSZ.
    private(set) var segmentCount: UInt32 = 0
    /// ERSTBA.
    private(set) var segmentTable: UInt64 = 0
    /// A write of the table's size or address that the event ring has not seen.
    var isTableNew = false
    /// ERDP without its flags.
    private(set) var dequeuePointer: UInt64 = 0
    /// DESI.
    private var dequeueSegment: UInt32 = 0
    /// EHB: the driver's handler is at work, so no further interrupt is raised.
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
        let left = quietUntil - now
        guard left > .zero else { return moderationInterval }
        let (seconds, attoseconds) = left.components
        let ticks = seconds > 0 ? 0xffff : min(attoseconds / 250_000_000_000, 0xffff)
        return moderationInterval | UInt32(ticks) << 16
    }

    mutating func writeModeration(_ value: UInt32, now: Duration) {
        moderationInterval = value[bits: 0...15]
        quietUntil = now + Self.tick * Int(value[bits: 16...31])
    }

    /// Starts the interval after an interrupt.
    mutating func startModeration(now: Duration) {
        quietUntil = now + Self.tick * Int(moderationInterval)
    }

    // MARK: - Event ring

    mutating func writeSegmentCount(_ value: UInt32) { segmentCount = value & 0xffff }

    mutating func writeTableLow(_ value: UInt32) {
        segmentTable = segmentTable & ~0xffff_ffff | UInt64(value & ~0x3f)
        isTableNew = true
    }

    mutating func writeTableHigh(_ value: UInt32) {
        segmentTable = segmentTable & 0xffff_ffff | UInt64(value) << 32
        isTableNew = true
    }

    var dequeueLow: UInt32 {
        UInt32(truncatingIfNeeded: dequeuePointer) | dequeueSegment | (isHandlerBusy ? 8 : 0)
    }

    mutating func writeDequeueLow(_ value: UInt32) {
        dequeuePointer = dequeuePointer & ~0xffff_ffff | UInt64(value & ~0xf)
        dequeueSegment = value[bits: 0...2]
        if value[bit: 3] { isHandlerBusy = false }
    }

    mutating func writeDequeueHigh(_ value: UInt32) {
        dequeuePointer = dequeuePointer & 0xffff_ffff | UInt64(value) << 32
    }
}
