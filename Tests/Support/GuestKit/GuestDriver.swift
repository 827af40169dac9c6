// SPDX-License-Identifier: Apache-2.0

public import DMA

/// The error of a driver's operation.
public enum GuestError: Error, CustomStringConvertible {
    /// An event did not occur in time.
    case timeout(String)
    /// A command or transfer completed with another code than required.
    case unexpected(GuestEvent, String)

    public var description: String {
        switch self {
        case .timeout(let what): "timeout: \(what)"
        case .unexpected(let event, let what): "\(what): \(event)"
        }
    }
}

/// A guest's xHCI driver: reads the capabilities, initializes the controller, sends commands and
/// collects events. Devices and their endpoints are ``GuestSlot`` and ``GuestEndpoint``.
///
/// It accesses the controller through ``Machine``, which is a simulation or a connection to a
/// server.
public final class GuestDriver {
    /// The configuration of the controller.
    public struct Options: Sendable {
        /// The segment sizes of the event ring of each used interrupter.
        public var eventRings: [[Int]] = [[256]]
        /// The segment sizes of the command ring.
        public var commandRing: [Int] = [32]
        /// IMODI of each interrupter, in units of 250 ns.
        public var moderationInterval: UInt16 = 0
        /// Whether event rings are read only after an interrupt, as real drivers do, and not
        /// polled.
        public var waitsForInterrupts = false
        /// INTE of USBCMD.
        public var enablesInterrupts = true

        public init() {}
    }

    /// Bits of USBCMD (xHCI 5.4.1).
    public enum Command {
        public static let run: UInt32 = 1 << 0
        public static let reset: UInt32 = 1 << 1
        public static let interruptEnable: UInt32 = 1 << 2
        public static let hostSystemErrorEnable: UInt32 = 1 << 3
        public static let wrapEventEnable: UInt32 = 1 << 10
    }

    /// Bits of USBSTS (xHCI 5.4.2).
    public enum Status {
        public static let halted: UInt32 = 1 << 0
        public static let hostSystemError: UInt32 = 1 << 2
        public static let eventInterrupt: UInt32 = 1 << 3
        public static let portChange: UInt32 = 1 << 4
        public static let notReady: UInt32 = 1 << 11
        public static let controllerError: UInt32 = 1 << 12
    }

    public let machine: any Machine
    public let options: Options
    public let registers: GuestRegisters
    public let commandRing: GuestRing
    public let eventRings: [GuestEventRing]
    /// The Device Context Base Address Array.
    public let deviceContexts: GuestAddress
    /// Events that have been read and not taken, in their order.
    public internal(set) var events: [GuestEvent] = []
    /// The number of events read since the driver was created.
    public private(set) var eventCount = 0
    /// Whether ERDP is written when events are read off the ring.
    public var updatesDequeuePointer = true
    /// Called for each event that is read, before it can be taken.
    public var onEvent: ((GuestEvent) -> Void)?
    private var interruptsSeen: [Int]

    public var memory: GuestRAM { machine.memory }

    public init(_ machine: any Machine, _ options: Options = .init()) {
        self.machine = machine
        self.options = options
        registers = GuestRegisters(machine)
        let memory = machine.memory
        commandRing = GuestRing(memory, segmentSizes: options.commandRing)
        eventRings = options.eventRings.map { GuestEventRing(memory, segmentSizes: $0) }
        interruptsSeen = options.eventRings.map { _ in 0 }
        deviceContexts = memory.allocate((registers.slots + 1) * 8, boundary: 4096)
    }

    // MARK: - Initialization

    /// Halts and resets the controller, as Linux does (xHCI 4.2).
    public func reset() throws {
        try halt()
        machine.write32(Command.reset, at: registers.command)
        guard
            machine.advance(until: {
                machine.read32(registers.command) & Command.reset == 0
                    && machine.read32(registers.status) & Status.notReady == 0
            })
        else { throw GuestError.timeout("controller reset") }
        clear()
    }

    /// Clears all rings and events, as after a reset.
    public func clear() {
        commandRing.clear()
        for ring in eventRings { ring.clear() }
        memory.fill(0, at: deviceContexts, count: (registers.slots + 1) * 8)
        events = []
        interruptsSeen = eventRings.indices.map { machine.interruptCount(vector: $0) }
    }

    /// Clears Run/Stop and waits for HCHalted.
    public func halt() throws {
        machine.write32(
            machine.read32(registers.command) & ~(Command.run | Command.interruptEnable),
            at: registers.command)
        guard
            machine.advance(until: { machine.read32(registers.status) & Status.halted != 0 })
        else { throw GuestError.timeout("halt") }
    }

    /// Sets Run/Stop and waits until HCHalted clears.
    public func run() throws {
        machine.write32(
            Command.run | (options.enablesInterrupts ? Command.interruptEnable : 0),
            at: registers.command)
        guard
            machine.advance(until: { machine.read32(registers.status) & Status.halted == 0 })
        else { throw GuestError.timeout("start") }
    }

    /// Writes the registers that a driver initializes before it sets R/S (xHCI 4.2).
    public func configureRegisters() {
        machine.write32(UInt32(registers.slots), at: registers.configure)
        machine.write64(deviceContexts.rawValue, at: registers.deviceContexts)
        machine.write64(commandRing.start.rawValue | 1, at: registers.commandRing)
        for (number, ring) in eventRings.enumerated() {
            let base = registers.interrupter(number)
            machine.write32(UInt32(ring.segments.count), at: base + 0x08)
            machine.write64(ring.dequeueRegister, at: base + 0x18)
            machine.write64(ring.table.rawValue, at: base + 0x10)
            machine.write32(UInt32(options.moderationInterval), at: base + 0x04)
            machine.write32(2 | 1, at: base)
        }
    }

    /// Resets, initializes and starts the controller.
    public func start() throws {
        try reset()
        configureRegisters()
        try run()
    }

    // MARK: - Events

    /// Reads new events off the event rings into ``events``.
    public func collect() {
        for number in eventRings.indices { collect(number) }
    }

    private func collect(_ number: Int) {
        if options.waitsForInterrupts {
            let count = machine.interruptCount(vector: number)
            guard count != interruptsSeen[number] else { return }
            interruptsSeen[number] = count
            machine.write32(Status.eventInterrupt, at: registers.status)
        }
        let ring = eventRings[number]
        var found = false
        while let trb = ring.next() {
            let event = GuestEvent(trb, interrupter: number)
            found = true
            eventCount += 1
            onEvent?(event)
            events.append(event)
        }
        if updatesDequeuePointer, found || options.waitsForInterrupts { acknowledge(number) }
    }

    /// Writes ERDP, which also clears Event Handler Busy.
    public func acknowledge(_ interrupter: Int = 0) {
        machine.write64(
            eventRings[interrupter].dequeueRegister | 8,
            at: registers.interrupter(interrupter) + 0x18)
    }

    /// Waits for an event and takes it.
    public func wait(
        _ what: String, limit: Duration = .seconds(10), where matches: (GuestEvent) -> Bool
    ) throws -> GuestEvent {
        var index: Int?
        _ = machine.advance(limit: limit) {
            collect()
            index = events.firstIndex(where: matches)
            return index != nil
        }
        guard let index else {
            throw GuestError.timeout("\(what); events not taken: \(events)")
        }
        return events.remove(at: index)
    }

    /// Waits for any Transfer Event and takes it.
    public func transferEvent() throws -> GuestEvent {
        try wait("a transfer event") { $0.isTransfer }
    }

    /// Takes all events that are posted within a time.
    @discardableResult
    public func takeAll(after time: Duration = .milliseconds(500)) -> [GuestEvent] {
        _ = machine.advance(limit: time) {
            collect()
            return false
        }
        defer { events = [] }
        return events
    }

    // MARK: - Commands

    /// Rings a doorbell (xHCI 5.6).
    public func ringDoorbell(slot: Int, target: Int, stream: Int = 0) {
        machine.write32(
            UInt32(target & 0xff) | UInt32(stream & 0xffff) << 16,
            at: registers.doorbells + slot * 4)
    }

    /// Sends a command and returns its Command Completion Event, whatever its code.
    @discardableResult
    public func command(_ trb: GuestTRB) throws -> GuestEvent {
        let address = commandRing.push(trb)
        ringDoorbell(slot: 0, target: 0)
        return try wait("completion of command \(trb.kind.rawValue)") {
            $0.isCommandCompletion && $0.pointer == address
        }
    }

    /// Sends a command that must succeed.
    @discardableResult
    public func succeed(_ trb: GuestTRB) throws -> GuestEvent {
        let event = try command(trb)
        guard event.code == .success else {
            throw GuestError.unexpected(event, "command \(trb.kind.rawValue)")
        }
        return event
    }

    /// Enable Slot; allocates a device context for the slot.
    public func enableSlot(port: Int) throws -> GuestSlot {
        let event = try succeed(.command(.enableSlot))
        return GuestSlot(self, number: event.slot, port: port)
    }
}

extension GuestDriver {
    /// Drops events that have been read and not taken.
    public func discard(where matches: (GuestEvent) -> Bool) { events.removeAll(where: matches) }
}
