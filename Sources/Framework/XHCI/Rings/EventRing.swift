// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import DequeModule

/// The producer side of an interrupter's event ring (xHCI 4.9.4) and the interrupter's interrupt
/// (xHCI 4.17).
///
/// Events that do not fit wait here and are posted when the driver advances ERDP; none is lost. The
/// last event of a full ring is an Event Ring Full Error.
struct EventRing {
    /// The interrupter's index.
    let index: Int

    private struct Segment {
        var base: UInt64
        var count: Int
    }

    private struct WaitingEvent {
        var trb: TRB
        var interrupts: Bool
    }

    private var segments: [Segment] = []
    /// TRBs in all segments.
    private var capacity = 0
    /// The position of the next event: the segment, the TRB in it, and the same counted over all
    /// segments.
    private var segment = 0
    private var offset = 0
    private var enqueue = 0
    private var cycle = true
    /// The driver's position, counted over all segments, and the ERDP that it was computed from.
    private var dequeue = 0
    private var knownPointer: UInt64?

    private var waiting: Deque<WaitingEvent> = []
    /// The last event posted is an Event Ring Full Error.
    private var hasReportedFull = false
    /// A posted event requests an interrupt that has not been raised.
    private var isInterruptDue = false

    init(index: Int) { self.index = index }

    /// The number of events that wait because the ring is full.
    var waitingCount: Int { waiting.count }

    /// Posts an event, or keeps it until the ring has space for it.
    mutating func post(_ trb: TRB, interrupts: Bool, memory: GuestMemory, registers: RegisterFile)
        throws(DMAError)
    {
        if registers.writtenInterrupters[bit: index] { try refresh(memory, registers) }
        if segments.isEmpty { return }
        let event = WaitingEvent(trb: trb, interrupts: interrupts)
        // The usual case: the ring has space, and no event waits before this one.
        if waiting.isEmpty, free >= 2 { return try write(event, memory) }
        waiting.append(event)
        try flush(memory)
    }

    /// Posts waiting events while the ring has space.
    mutating func resume(memory: GuestMemory, registers: RegisterFile) throws(DMAError) {
        guard !waiting.isEmpty else { return }
        try refresh(memory, registers)
        try flush(memory)
    }

    private mutating func flush(_ memory: GuestMemory) throws(DMAError) {
        while let event = waiting.first {
            // The last free TRB is for the Event Ring Full Error.
            guard free >= 2 else {
                if free == 1, !hasReportedFull {
                    hasReportedFull = true
                    isInterruptDue = true
                    try write(.hostController(.eventRingFullError), memory)
                }
                return
            }
            try write(event, memory)
            waiting.removeFirst()
        }
    }

    private mutating func write(_ event: WaitingEvent, _ memory: GuestMemory) throws(DMAError) {
        hasReportedFull = false
        try write(event.trb, memory)
        if event.interrupts { isInterruptDue = true }
    }

    // MARK: - The ring

    private var used: Int { enqueue >= dequeue ? enqueue - dequeue : enqueue + capacity - dequeue }

    /// The TRBs that can be written. One always stays unused: a full ring must not look empty.
    private var free: Int { capacity - 1 - used }

    private mutating func write(_ trb: TRB, _ memory: GuestMemory) throws(DMAError) {
        let address = GuestAddress(segments[segment].base) + offset * TRB.size
        var trb = trb
        trb.cycle = cycle
        try memory.storeTRB(trb, at: address)
        offset += 1
        enqueue += 1
        guard offset == segments[segment].count else { return }
        offset = 0
        segment += 1
        guard segment == segments.count else { return }
        segment = 0
        enqueue = 0
        cycle.toggle()
    }

    /// Reads the registers that the driver wrote: a new segment table, or the dequeue pointer.
    private mutating func refresh(_ memory: GuestMemory, _ registers: RegisterFile)
        throws(DMAError)
    {
        registers.writtenInterrupters[bit: index] = false
        if registers.interrupters[index].isTableWritten {
            registers.interrupters[index].isTableWritten = false
            try loadTable(memory, registers)
        }
        refreshDequeuePointer(registers)
    }

    private mutating func refreshDequeuePointer(_ registers: RegisterFile) {
        let pointer = registers.interrupters[index].dequeuePointer
        guard pointer != knownPointer else { return }
        knownPointer = pointer
        // A pointer outside the ring is the first half of a 64-bit write, or invalid: the previous
        // one stays in effect.
        var before = 0
        for segment in segments {
            if pointer >= segment.base,
                pointer - segment.base < UInt64(segment.count * TRB.size)
            {
                dequeue = before + Int(pointer - segment.base) / TRB.size
                return
            }
            before += segment.count
        }
    }

    /// Loads the Event Ring Segment Table (xHCI 6.5).
    ///
    /// It is loaded with the first event after a write of ERSTBA, not at the write: drivers write
    /// the two halves in either order.
    private mutating func loadTable(_ memory: GuestMemory, _ registers: RegisterFile)
        throws(DMAError)
    {
        segments = []
        capacity = 0
        (segment, offset, enqueue, dequeue) = (0, 0, 0, 0)
        cycle = true
        knownPointer = nil
        hasReportedFull = false
        let table = GuestAddress(registers.interrupters[index].segmentTable)
        let count = min(
            Int(registers.interrupters[index].segmentCount),
            1 << registers.capabilities.eventRingSegmentsLog2)
        var loaded: [Segment] = []
        for entry in 0..<count {
            let base = try memory.load(UInt64.self, at: table + entry * 16) & ~0x3f
            let size = try memory.load(UInt32.self, at: table + entry * 16 + 8) & 0xffff
            guard size > 0 else { continue }
            loaded.append(
                Segment(base: base, count: min(Int(size), XHCILimits.trbsPerEventSegment)))
        }
        segments = loaded
        capacity = loaded.reduce(0) { $0 + $1.count }
    }

    // MARK: - Interrupts

    /// Whether events wait for space, or an interrupt is due or pending.
    func hasWork(_ registers: RegisterFile) -> Bool {
        isInterruptDue || !waiting.isEmpty || registers.interrupters[index].isPending
    }

    /// Raises the interrupt if it is due.
    ///
    /// - Returns: the end of the moderation interval, if moderation delays the interrupt.
    mutating func raiseInterrupt(
        _ sink: any InterruptSink, registers: RegisterFile, now: Duration
    ) -> Duration? {
        var deadline: Duration?
        if isInterruptDue, !registers.interrupters[index].isHandlerBusy {
            refreshDequeuePointer(registers)
            if used == 0 {
                isInterruptDue = false
            } else if now < registers.interrupters[index].moderationEnd {
                deadline = registers.interrupters[index].moderationEnd
            } else {
                isInterruptDue = false
                registers.interrupters[index].isPending = true
                registers.interrupters[index].isHandlerBusy = true
                registers.status.insert(.eventInterrupt)
            }
        }
        if registers.interrupters[index].isPending, registers.interrupters[index].isEnabled,
            registers.command.contains(.interrupterEnable)
        {
            // Sending the MSI-X message clears IP (xHCI 4.17.5).
            registers.interrupters[index].isPending = false
            registers.interrupters[index].startModeration(now: now)
            sink.signal(vector: index)
        }
        return deadline
    }
}
