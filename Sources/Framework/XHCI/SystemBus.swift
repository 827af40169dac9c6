// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import Logging

/// The engine's access to the guest: guest memory, event rings and interrupts.
///
/// A failed access to a context or an event ring is a Host System Error, which halts the controller
/// (xHCI 4.10.2.6). The functions here report it themselves, so callers need no error path.
struct SystemBus {
    let memory: GuestMemory
    let leases: LeaseTable
    let registers: RegisterFile
    let sink: any InterruptSink
    private let logger: Logger
    /// The event rings, by interrupter.
    private var rings: [EventRing]
    /// The interrupters whose event ring is full, so that events wait; one bit each.
    private var full: UInt16 = 0

    init(
        memory: GuestMemory, leases: LeaseTable, registers: RegisterFile, sink: any InterruptSink,
        logger: Logger
    ) {
        self.memory = memory
        self.leases = leases
        self.registers = registers
        self.sink = sink
        self.logger = logger
        rings = []
        reset()
    }

    /// Discards all waiting events and detaches the event rings, as a controller reset does.
    mutating func reset() {
        rings = (0..<registers.capabilities.interrupters).map(EventRing.init(index:))
        full = 0
    }

    /// Logs an error of the guest at debug level. The message is only built if that level is
    /// enabled.
    func log(_ message: @autoclosure () -> String) { logger.debug("\(message())") }

    // MARK: - Memory

    /// Stores a context or a part of one; a failure is a Host System Error.
    func store<Value: BitwiseCopyable>(_ value: Value, at address: UInt64) {
        do throws(DMAError) {
            try memory.store(value, at: GuestAddress(address))
        } catch {
            fail(error)
        }
    }

    /// Loads a context or a part of one; `nil` after a failure, which is a Host System Error.
    func load<Value: BitwiseCopyable>(_ type: Value.Type, at address: UInt64) -> Value? {
        do throws(DMAError) {
            // Returned through a constant: `return try` would infer `Value?` and load its tag byte,
            // too.
            let value: Value = try memory.load(at: GuestAddress(address))
            return value
        } catch {
            fail(error)
            return nil
        }
    }

    /// Halts the controller after a failed access: Host System Error.
    func fail(_ error: DMAError) {
        log("Host System Error: \(error)")
        registers.reportHostSystemError()
    }

    /// Loads the TRB at a position; `nil` if the producer still owns it.
    func fetch(at position: RingPosition) throws(DMAError) -> TRB? {
        try memory.loadTRB(at: GuestAddress(position.address), cycle: position.cycle)
    }

    // MARK: - Events

    /// Posts an event if R/S is set. Events for an interrupter that does not exist go to the first
    /// one.
    mutating func post(_ event: TRB, to interrupter: Int, interrupts: Bool = true) {
        guard registers.command.contains(.run) else { return }
        let ring = interrupter < rings.count ? interrupter : 0
        // Before the store: the guest may write the registers while the store waits for its memory.
        registers.interruptersWithWork[bit: ring] = true
        do throws(DMAError) {
            try rings[ring].post(
                event, interrupts: interrupts, memory: memory, registers: registers)
        } catch {
            fail(error)
        }
        full[bit: ring] = rings[ring].waitingCount > 0
    }

    /// Posts waiting events to event rings that have space again.
    mutating func resumeEvents() {
        for index in full.setBits {
            do throws(DMAError) {
                try rings[index].resume(memory: memory, registers: registers)
            } catch {
                fail(error)
            }
            full[bit: index] = rings[index].waitingCount > 0
        }
    }

    /// Whether the event rings of a set of interrupters (one bit each) are not full.
    func hasRoom(in interrupters: UInt16) -> Bool { interrupters & full == 0 }

    /// Whether a command may be executed: the primary event ring is not full, and no ring has
    /// ``XHCILimits/waitingEvents``, to which the events of a stopped endpoint would be added.
    var hasRoomForCommands: Bool {
        full == 0
            || !full[bit: 0] && rings.allSatisfy { $0.waitingCount < XHCILimits.waitingEvents }
    }

    /// The bit of an interrupter in a set for ``hasRoom(in:)``.
    func interrupterBit(_ interrupter: Int) -> UInt16 {
        interrupter < rings.count ? 1 << UInt16(interrupter) : 1
    }

    /// Raises the interrupts that are due.
    ///
    /// - Returns: the time of the next interrupt that moderation delays.
    mutating func raiseInterrupts(now: Duration) -> Duration? {
        var next: Duration?
        for index in registers.interruptersWithWork.setBits {
            if let time = rings[index].raiseInterrupt(sink, registers: registers, now: now) {
                next = min(next ?? time, time)
            }
            registers.interruptersWithWork[bit: index] = rings[index].hasWork(registers)
        }
        return next
    }
}
