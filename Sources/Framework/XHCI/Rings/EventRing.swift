// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import DequeModule

/// The event ring of one interrupter: the producer's side (xHCI 4.9.4), and when the interrupter
/// interrupts (xHCI 4.17).
///
/// An event that finds no room waits here; the ring ends with an Event Ring Full Error then, and
/// goes on when the driver moves its dequeue pointer. Nothing is lost.
struct EventRing {
    /// The interrupter's number.
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
    /// Where the next event goes, as segment and TRB and counted over all segments.
    private var segment = 0
    private var offset = 0
    private var enqueue = 0
    private var cycle = true
    /// The driver's dequeue pointer in TRBs, and the ERDP it was computed from.
    private var dequeue = 0
    private var knownPointer: UInt64?

    private var waiting: Deque<WaitingEvent> = []
    private var hasToldFull = false
    /// An event was posted that asks for an interrupt which has not been raised.
    private var wantsInterrupt = false

    init(index: Int) { self.index = index }

    /// How many events wait for room.
    var waitingCount: Int { waiting.count }

    /// Posts an event, or keeps it until there is room.
    mutating func post(_ trb: TRB, interrupts: Bool, memory: GuestMemory, registers: RegisterFile)
        throws(DMAError)
    {
        if registers.movedEventRings[bit: index] { try refresh(memory, registers) }
        if segments.isEmpty { return }
        let event = WaitingEvent(trb: trb, interrupts: interrupts)
        // Mostly there is room, and nothing before it.
        if waiting.isEmpty, free >= 2 { return try write(event, memory) }
        waiting.append(event)
        try flush(memory)
    }

    /// Posts events that waited, as far as there is room now.
    mutating func resume(memory: GuestMemory, registers: RegisterFile) throws(DMAError) {
        guard !waiting.isEmpty else { return }
        try refresh(memory, registers)
        try flush(memory)
    }

    private mutating func flush(_ memory: GuestMemory) throws(DMAError) {
        while let event = waiting.first {
            // The last free place belongs to the event that says so.
            guard free >= 2 else {
                if free == 1, !hasToldFull {
                    hasToldFull = true
                    wantsInterrupt = true
                    try write(.hostController(.eventRingFullError), memory)
                }
                return
            }
            try write(event, memory)
            waiting.removeFirst()
        }
    }

    private mutating func write(_ event: WaitingEvent, _ memory: GuestMemory) throws(DMAError) {
        hasToldFull = false
        try write(event.trb, memory)
        if event.interrupts { wantsInterrupt = true }
    }

    // MARK: - The ring

    private var used: Int { enqueue >= dequeue ? enqueue - dequeue : enqueue + capacity - dequeue }

    /// One place always stays free, or a full ring would look like an empty one.
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

    /// Looks at what the driver wrote: a new table, or how far it has come.
    private mutating func refresh(_ memory: GuestMemory, _ registers: RegisterFile)
        throws(DMAError)
    {
        registers.movedEventRings[bit: index] = false
        if registers.interrupters[index].isTableNew {
            registers.interrupters[index].isTableNew = false
            try loadTable(memory, registers)
        }
        refreshDequeuePointer(registers)
    }

    private mutating func refreshDequeuePointer(_ registers: RegisterFile) {
        let pointer = registers.interrupters[index].dequeuePointer
        guard pointer != knownPointer else { return }
        knownPointer = pointer
        // A pointer outside the ring is half of a new one, or a mistake: the old one stays.
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

    /// Reads the Event Ring Segment Table (xHCI 6.5). It is read late, with the first event after a
    /// write of its address, because drivers write the halves of the address in either order.
    private mutating func loadTable(_ memory: GuestMemory, _ registers: RegisterFile)
        throws(DMAError)
    {
        segments = []
        capacity = 0
        (segment, offset, enqueue, dequeue) = (0, 0, 0, 0)
        cycle = true
        knownPointer = nil
        hasToldFull = false
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

    /// Whether something of the interrupter waits: events for room, or an interrupt for its time.
    func isBusy(_ registers: RegisterFile) -> Bool {
        wantsInterrupt || !waiting.isEmpty || registers.interrupters[index].isPending
    }

    /// Raises the interrupter's interrupt if it is due.
    ///
    /// - Returns: when to ask again, if moderation holds one back.
    mutating func interrupt(
        _ sink: any InterruptSink, registers: RegisterFile, now: Duration
    ) -> Duration? {
        var deadline: Duration?
        if wantsInterrupt, !registers.interrupters[index].isHandlerBusy {
            refreshDequeuePointer(registers)
            if used == 0 {
                wantsInterrupt = false
            } else if now < registers.interrupters[index].quietUntil {
                deadline = registers.interrupters[index].quietUntil
            } else {
                wantsInterrupt = false
                registers.interrupters[index].isPending = true
                registers.interrupters[index].isHandlerBusy = true
                registers.status.insert(.eventInterrupt)
            }
        }
        if registers.interrupters[index].isPending, registers.interrupters[index].isEnabled,
            registers.command.contains(.interrupterEnable)
        {
            // The message clears IP by itself (xHCI 4.17.5).
            registers.interrupters[index].isPending = false
            registers.interrupters[index].startModeration(now: now)
            sink.signal(vector: index)
        }
        return deadline
    }
}
