// SPDX-License-Identifier: Apache-2.0

public import DMA
public import Logging
public import USB

/// An xHCI 1.1 host controller.
///
/// Register accesses only change the register file and mark work; ``service(now:)`` does the work:
/// it is the only function that touches guest memory or devices. So a register can be read and
/// written at any moment, even while `service` waits for a piece of guest memory.
public final class Controller: USBBus {
    /// Bytes of the register space (BAR 0).
    public static let registerSpaceSize = 0x4000

    private let registers: RegisterFile
    private let hub: RootHub
    private var engine: Engine
    /// `service` is at work, so the engine is out of reach.
    private var isServicing = false
    private var isResetWanted = false
    private var wantedCancels: [(start: GuestAddress, count: UInt64)] = []
    /// Who waits for devices to let go of guest memory, and until when.
    private var waiting: [(limit: Duration, finished: () -> Void)] = []

    public init(
        memory: GuestMemory, interrupts: any InterruptSink, capabilities: Capabilities = .init(),
        logger: Logger
    ) {
        capabilities.validate()
        let registers = RegisterFile(capabilities)
        let inbox = DeviceInbox()
        self.registers = registers
        hub = RootHub(registers: registers, inbox: inbox)
        engine = Engine(
            registers: registers, hub: hub, inbox: inbox,
            bus: SystemBus(memory: memory, registers: registers, sink: interrupts, logger: logger))
    }

    /// Reads registers, at any offset and width; what lies outside reads as zero.
    public func read(at offset: Int, into bytes: inout OutputSpan<UInt8>, now: Duration) {
        registers.read(at: offset, into: &bytes, now: now)
    }

    /// Writes registers, at any offset and width.
    public func write(at offset: Int, from bytes: Span<UInt8>, now: Duration) {
        registers.write(at: offset, from: bytes, now: now)
    }

    /// Does all work that is due and returns the time at which there will be more, if known.
    ///
    /// Called at the end of each turn of the event loop; costs next to nothing when nothing is due.
    public func service(now: Duration) -> Duration? {
        guard !isServicing else { return nil }
        let next = serviceEngine(now: now)
        guard !waiting.isEmpty, let limit = endWaiting(now: now) else { return next }
        return min(next ?? limit, limit)
    }

    private func serviceEngine(now: Duration) -> Duration? {
        guard engine.hasWork(now: now) else { return engine.deadline }
        isServicing = true
        engine.service(now: now) { isResetWanted || !wantedCancels.isEmpty }
        isServicing = false
        guard isResetWanted || !wantedCancels.isEmpty else { return engine.deadline }
        for (start, count) in wantedCancels {
            engine.cancelTransfers(touching: start, count: count)
        }
        wantedCancels = []
        if isResetWanted { reset() }
        return now
    }

    /// Returns to the state after power-on; devices stay plugged in. Memory and interrupts are not
    /// touched. It takes effect at once, or when a `service` in progress ends.
    public func reset() {
        isResetWanted = isServicing
        if !isServicing { engine.reset() }
    }

    /// Calls `finished` once when no device is at work in guest memory for a transfer that was given
    /// up, as all are by a reset, or at `limit`; from within this or a later `service`.
    public func whenQuiet(by limit: Duration, then finished: @escaping () -> Void) {
        if !isServicing && hub.isQuiet { return finished() }
        waiting.append((limit, finished))
    }

    /// - Returns: when those who still wait are to be told that it took too long.
    private func endWaiting(now: Duration) -> Duration? {
        let isQuiet = hub.isQuiet
        let ended = waiting.filter { isQuiet || $0.limit <= now }
        waiting.removeAll { isQuiet || $0.limit <= now }
        for wait in ended { wait.finished() }
        return waiting.map(\.limit).min()
    }

    /// Gives up transfers whose data lies in a range that the client takes away.
    ///
    /// They end when their device lets go, in a later `service`.
    public func cancelTransfers(touching start: GuestAddress, count: UInt64) {
        if isServicing {
            wantedCancels.append((start, count))
        } else {
            engine.cancelTransfers(touching: start, count: count)
        }
    }

    public func attach(_ device: any USBDevice) throws(AttachError) { try hub.attach(device) }

    public func detach(_ device: any USBDevice) { hub.detach(device) }

    /// The port that a device is plugged into, counting from 1; `nil` if it is not, or no longer.
    public func port(of device: any USBDevice) -> Int? { hub.port(of: device).map { $0 + 1 } }
}
