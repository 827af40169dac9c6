// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import DequeModule

/// One interrupter: its event ring, the events that wait for room, and when it may interrupt
/// (xHCI 4.17).
final class Interrupter {
    private let index: Int
    private let registers: RegisterFile
    private let memory: GuestMemory
    private let sink: any InterruptSink
    private var ring = EventRing()
    private var backlog: Deque<(event: TRB, interrupts: Bool)> = []
    /// IPE: an event that is to interrupt was posted since the last interrupt (xHCI 4.17.2).
    private var hasPendingEvent = false
    /// IMODC as a time: no interrupt before it.
    private var nextInterrupt: Duration = .zero

    init(
        _ index: Int, registers: RegisterFile, memory: GuestMemory, sink: any InterruptSink
    ) {
        self.index = index
        self.registers = registers
        self.memory = memory
        self.sink = sink
    }

    /// Whether events wait for room; no more work is begun that would add to them.
    var isCongested: Bool { !backlog.isEmpty }

    /// Posts an event, or keeps it until the driver has made room.
    func post(_ event: TRB, interrupts: Bool = true) {
        guard backlog.isEmpty, write(event) else {
            backlog.append((event, interrupts))
            return
        }
        if interrupts { hasPendingEvent = true }
    }

    /// Posts what found no room before.
    func flush() {
        if registers.interrupters[index].hasNewDequeue {
            registers.interrupters[index].hasNewDequeue = false
            let dequeue = registers.interrupters[index].dequeuePointer
            // The driver has seen everything: nothing is left to tell.
            if dequeue == ring.enqueuePointer { hasPendingEvent = false }
            if ring.isFull, ring.hasRoom(dequeue: dequeue) { ring.setFull(false) }
        }
        while let first = backlog.first, write(first.event) {
            backlog.removeFirst()
            if first.interrupts { hasPendingEvent = true }
        }
    }

    /// Forgets ring and events, as after HCRST.
    func reset() {
        ring = EventRing()
        backlog = []
        hasPendingEvent = false
        nextInterrupt = .zero
    }

    /// Interrupts if it is time.
    ///
    /// - Returns: when moderation allows an interrupt that is due.
    func interrupt(now: Duration) -> Duration? {
        if hasPendingEvent && !registers.interrupters[index].isHandlerBusy {
            guard now >= nextInterrupt else { return nextInterrupt }
            hasPendingEvent = false
            registers.interrupters[index].isPending = true
            registers.interrupters[index].isHandlerBusy = true
            registers.status.insert(.eventInterrupt)
        }
        if registers.interrupters[index].isPending && registers.interrupters[index].isEnabled
            && registers.command.contains(.interruptEnable)
        {
            // A message-signalled interrupt clears IP by being sent (xHCI 4.17.5).
            registers.interrupters[index].isPending = false
            nextInterrupt = now + registers.interrupters[index].moderation
            sink.signal(vector: index)
        }
        return nil
    }

    /// Writes an event into the ring if there is room.
    private func write(_ event: TRB) -> Bool {
        do throws(DMAError) {
            try setUpRing()
            // Without a ring there is nobody to tell.
            guard ring.exists else { return true }
            let dequeue = registers.interrupters[index].dequeuePointer
            if ring.isFull { return false }
            if ring.hasRoom(dequeue: dequeue) {
                try ring.post(event, memory: memory)
                return true
            }
            ring.setFull(true)
            if ring.hasRoomForFullError(dequeue: dequeue) {
                try ring.post(.hostController(.eventRingFull), memory: memory)
                hasPendingEvent = true
            }
            return false
        } catch {
            registers.failHost()
            return true
        }
    }

    private func setUpRing() throws(DMAError) {
        guard registers.interrupters[index].hasNewTable else { return }
        registers.interrupters[index].hasNewTable = false
        let table = registers.interrupters[index].segmentTable
        let count = min(
            Int(registers.interrupters[index].segmentTableSize),
            1 << registers.capabilities.eventRingSegmentsLog2)
        ring = EventRing()
        ring = try EventRing(table: table, count: count, memory: memory)
    }
}
