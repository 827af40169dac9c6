// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import Logging

/// The way from the engine to the guest: its memory, the event rings and the interrupts.
///
/// An access that must not fail, to a context or an event ring, is answered with a Host System
/// Error if it does (xHCI 4.10.2.6); the caller just goes on to its end.
struct SystemBus {
    let memory: GuestMemory
    let registers: RegisterFile
    let sink: any InterruptSink
    let bounceBudget = BounceBudget()
    private let logger: Logger
    private var rings: [EventRing]
    /// The interrupters whose events wait for room, one bit each.
    private var full: UInt16 = 0

    init(
        memory: GuestMemory, registers: RegisterFile, sink: any InterruptSink, logger: Logger
    ) {
        self.memory = memory
        self.registers = registers
        self.sink = sink
        self.logger = logger
        rings = []
        reset()
    }

    /// Forgets all events.
    mutating func reset() {
        rings = (0..<registers.capabilities.interrupters).map(EventRing.init(index:))
        full = 0
    }

    /// Logs a mistake of the guest; the text is only made if somebody reads it.
    func log(_ message: @autoclosure () -> String) { logger.debug("\(message())") }

    // MARK: - Memory

    /// Stores a part of a context.
    func store<Value: BitwiseCopyable>(_ value: Value, at address: UInt64) {
        do throws(DMAError) {
            try memory.store(value, at: GuestAddress(address))
        } catch {
            fail(error)
        }
    }

    /// Loads a context, or `nil` after a Host System Error.
    func load<Value: BitwiseCopyable>(_ type: Value.Type, at address: UInt64) -> Value? {
        do throws(DMAError) {
            // Not returned directly: the value would be loaded as an optional, with its tag.
            let value: Value = try memory.load(at: GuestAddress(address))
            return value
        } catch {
            fail(error)
            return nil
        }
    }

    /// Stops the controller after an access that it cannot do without.
    func fail(_ error: DMAError) {
        log("host system error: \(error)")
        registers.reportHostSystemError()
    }

    /// The TRB at a place, or `nil` if it is the producer's. Each word is loaded once.
    func fetch(at position: RingPosition) throws(DMAError) -> TRB? {
        try memory.loadTRB(at: GuestAddress(position.address), cycle: position.cycle)
    }

    // MARK: - Events

    /// Posts an event. An interrupter that does not exist stands for the first.
    mutating func post(_ event: TRB, to interrupter: Int, interrupts: Bool = true) {
        guard registers.command.contains(.run) else { return }
        let ring = interrupter < rings.count ? interrupter : 0
        // First, since the guest may acknowledge events while this waits for its memory.
        registers.busyInterrupters[bit: ring] = true
        do throws(DMAError) {
            try rings[ring].post(
                event, interrupts: interrupts, memory: memory, registers: registers)
        } catch {
            fail(error)
        }
        full[bit: ring] = rings[ring].waitingCount > 0
    }

    /// Posts what waited for room.
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

    /// Whether all interrupters in a set (one bit each) take events at once.
    func hasRoom(in interrupters: UInt16) -> Bool { interrupters & full == 0 }

    /// Whether a command may be run: its own event has room, and those of a stopped endpoint do not
    /// pile up.
    var hasRoomForCommands: Bool {
        full == 0
            || !full[bit: 0] && rings.allSatisfy { $0.waitingCount < XHCILimits.waitingEvents }
    }

    /// The bit of an interrupter in the sets of ``hasRoom(in:)``.
    func interrupterBit(_ interrupter: Int) -> UInt16 {
        interrupter < rings.count ? 1 << UInt16(interrupter) : 1
    }

    /// Raises the interrupts that are due and returns when the next one will be.
    mutating func raiseInterrupts(now: Duration) -> Duration? {
        var next: Duration?
        for index in registers.busyInterrupters.setBits {
            if let time = rings[index].interrupt(sink, registers: registers, now: now) {
                next = min(next ?? time, time)
            }
            registers.busyInterrupters[bit: index] = rings[index].isBusy(registers)
        }
        return next
    }
}
