// SPDX-License-Identifier: Apache-2.0

public import DMA
public import Logging
public import USB

/// An xHCI host controller (xHCI 1.2).
///
/// Register accesses only change the register file and mark work, which ``service(now:)`` does. So
/// registers can be read and written at any moment, even while `service` waits for guest memory.
public final class Controller: USBBus {
    /// Bytes of the register space (BAR 0).
    public static let registerSpaceSize = 0x4000

    private let registers: RegisterFile
    private let hub: RootHub
    private let leases = LeaseTable()
    private var engine: Engine
    /// Whether a service pass is in progress, during which the engine cannot be called.
    private var isServicing = false
    private var isResetPending = false

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
            bus: SystemBus(
                memory: memory, leases: leases, registers: registers, sink: interrupts,
                logger: logger))
    }

    /// Reads registers, at any offset and width; offsets without a register read as zero.
    public func read(at offset: Int, into bytes: inout OutputSpan<UInt8>, now: Duration) {
        registers.read(at: offset, into: &bytes, now: now)
    }

    /// Writes registers, at any offset and width.
    public func write(at offset: Int, from bytes: Span<UInt8>, now: Duration) {
        registers.write(at: offset, from: bytes, now: now)
    }

    /// Does the work that is due, and returns the time of the next work, if known.
    ///
    /// Called after each iteration of the event loop; costs next to nothing when nothing is due.
    public func service(now: Duration) -> Duration? {
        guard !isServicing else { return nil }
        guard engine.hasWork(now: now) else { return engine.deadline }
        isServicing = true
        engine.service(now: now) { isResetPending }
        isServicing = false
        guard isResetPending else { return engine.deadline }
        reset()
        return now
    }

    /// Resets the controller to its state after power-on; devices stay attached. Guest memory stays
    /// mapped and interrupts connected.
    ///
    /// No device accesses guest memory after this returns. During a service pass, both the reset and
    /// this guarantee take effect at the end of the pass.
    public func reset() {
        leases.endAll()
        isResetPending = isServicing
        if !isServicing { engine.reset() }
    }

    /// Ends all access to a region that the client has unmapped. Transfers that use it continue in
    /// staging memory; IN data is copied to guest memory when they complete, if it is mapped by
    /// then.
    public func endAccess(to region: MemoryRegion) { leases.stage(region) }

    public func attach(_ device: any USBDevice) throws(AttachError) { try hub.attach(device) }

    public func detach(_ device: any USBDevice) { hub.detach(device) }

    /// The port number of a device, from 1; `nil` if it is not attached.
    public func port(of device: any USBDevice) -> Int? { hub.port(of: device).map { $0 + 1 } }
}
