// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import Logging
internal import PCI
internal import Platform
internal import SystemPackage
internal import VFIOUser
internal import XHCI

/// The controller as a PCI function on the other side of a socket: a ``VFIODevice`` made of a
/// register file, a configuration space and interrupt messages.
///
/// It adapts and decides nothing: what a register means is the controller's knowledge, what a message
/// means the session's. It lives as long as the program; ``clientLeft()`` lies between two clients.
///
/// While the controller waits for guest memory that is reached by messages, the client's requests
/// are served in the midst of ``service(now:)``; ``Controller`` says what that allows.
final class XHCIFunction: VFIODevice {
    /// How long an unmapping waits for transfers that use the memory. Their data then goes to
    /// memory of ours that the client no longer looks at.
    static let unmapLimit: Duration = .seconds(1)

    /// How long a reset waits for a device that is at work in guest memory.
    static let resetLimit: Duration = .seconds(1)

    /// How long the controller leaves guest memory alone after the client has taken some away, unless
    /// the guest uses the function before.
    ///
    /// QEMU rearranges memory, for example when firmware protects its own, by taking away a part, all
    /// of main memory perhaps, and giving it back in other pieces. A controller that looked for
    /// commands in between would find nothing there and fail. The guest stands still meanwhile, so
    /// the next that it does tells that all is in place; the time is for guests that do nothing.
    static let rearrangingTime: Duration = .milliseconds(50)

    let controller: Controller
    let regions = XHCIIdentity.regions
    let interrupts: [InterruptDescription]

    private let memory = GuestMemory()
    private let messages: InterruptMessages
    private var configuration: ConfigurationSpace
    private let loop: any EventLoop
    private let logger: Logger
    /// The client rearranges its memory until about then.
    private var restsUntil: Duration?
    /// Keeps what `memory` only refers to weakly.
    private var remoteMemory: RemoteMemoryByMessages?

    init(capabilities: Capabilities = .init(), loop: any EventLoop, logger: Logger) {
        let layout = XHCIIdentity.interruptLayout(vectors: capabilities.interrupters)
        messages = InterruptMessages(layout, logger: logger)
        controller = Controller(
            memory: memory, interrupts: messages, capabilities: capabilities, logger: logger)
        configuration = XHCIIdentity.configurationSpace(interrupts: layout)
        self.loop = loop
        self.logger = logger
        var types = [InterruptDescription](
            repeating: .absent, count: InterruptDescription.PCI.count)
        types[InterruptDescription.PCI.msix] = InterruptDescription(
            count: layout.vectors, flags: [.eventFD, .maskable])
        // Never raised, but QEMU warns its user of a device that cannot report errors.
        types[InterruptDescription.PCI.error] = InterruptDescription(count: 1, flags: .eventFD)
        interrupts = types
    }

    /// Does the controller's work and returns when there will be more.
    func service(now: Duration) -> Duration? {
        if let rest = restsUntil, now < rest { return rest }
        restsUntil = nil
        return controller.service(now: now)
    }

    /// A client is there; memory that it gives without a descriptor is reached through it.
    func clientCame(_ connection: Connection) {
        let remote = RemoteMemoryByMessages(connection)
        remoteMemory = remote
        memory.remote = remote
    }

    /// The client is gone: nothing of it stays, devices stay plugged in.
    func clientLeft() {
        restsUntil = nil
        remoteMemory = nil
        messages.disconnectAll()
        reset()
        // Transfers that still run hold on to their memory until they end; nobody waits for them.
        _ = memory.unmapAll()
        controller.cancelTransfers(touching: GuestAddress(0), count: .max)
    }

    // MARK: - Regions

    func readRegion(_ index: Int, at offset: Int, into bytes: inout OutputSpan<UInt8>) {
        restsUntil = nil
        switch index {
        case XHCIIdentity.registers.index:
            controller.read(at: offset, into: &bytes, now: loop.now)
        case XHCIIdentity.interruptMemory.index:
            messages.read(at: offset, into: &bytes)
        case RegionDescription.PCI.configuration:
            configuration.read(at: offset, into: &bytes)
        default:
            // Absent regions have no bytes; the session answers what is not appended.
            break
        }
    }

    func writeRegion(_ index: Int, at offset: Int, from bytes: Span<UInt8>) {
        restsUntil = nil
        switch index {
        case XHCIIdentity.registers.index:
            controller.write(at: offset, from: bytes, now: loop.now)
        case XHCIIdentity.interruptMemory.index:
            messages.write(at: offset, from: bytes)
        case RegionDescription.PCI.configuration:
            configuration.write(at: offset, from: bytes)
        default:
            break
        }
    }

    func reset(whenFinished finished: @escaping () -> Void) {
        reset()
        controller.whenQuiet(by: loop.now + Self.resetLimit, then: finished)
    }

    private func reset() {
        restsUntil = nil
        controller.reset()
        configuration.reset()
        messages.reset()
    }

    // MARK: - Interrupts

    func setInterrupt(_ index: Int, vector: Int, to event: consuming OwnedDescriptor?) {
        guard index == InterruptDescription.PCI.msix else { return }
        messages.connect(vector, to: event)
    }

    func changeInterrupt(_ index: Int, vector: Int, _ action: InterruptAction) {
        guard index == InterruptDescription.PCI.msix else { return }
        messages.change(vector, action)
    }

    // MARK: - Memory

    func mapMemory(
        _ file: consuming OwnedDescriptor?, offset: UInt64, at address: UInt64, count: UInt64,
        access: MemoryAccess
    ) throws(Errno) {
        let start = GuestAddress(address)
        let writable = access.contains(.write)
        if let file = file.take() {
            try memory.map(file, offset: offset, count: count, at: start, writable: writable)
        } else {
            try memory.mapRemote(count: count, at: start, writable: writable)
        }
    }

    func unmapMemory(
        at address: UInt64, count: UInt64, whenFinished finished: @escaping () -> Void
    ) throws(Errno) {
        let start = GuestAddress(address)
        let unmapping = try memory.unmap(start, count: count)
        restsUntil = loop.now + Self.rearrangingTime
        // Transfers that use it go on if it is only rearranged: what they move then lies in memory
        // that the guest has, whichever piece it is in.
        let rearranging = BoundedWait(for: 1) { [weak self] in
            guard let self, !unmapping.isFinished, !memory.covers(start, count: count) else {
                return finished()
            }
            controller.cancelTransfers(touching: start, count: count)
            wait(for: [unmapping], then: finished)
        }
        rearranging.timer = loop.schedule(at: loop.now + Self.rearrangingTime) {
            rearranging.end()
        }
        unmapping.whenFinished { rearranging.one() }
    }

    func unmapAllMemory(whenFinished finished: @escaping () -> Void) {
        let unmappings = memory.unmapAll()
        controller.cancelTransfers(touching: GuestAddress(0), count: .max)
        wait(for: unmappings, then: finished)
    }

    private func wait(for unmappings: [Unmapping], then finished: @escaping () -> Void) {
        let pending = unmappings.filter { !$0.isFinished }
        guard !pending.isEmpty else { return finished() }
        let wait = BoundedWait(for: pending.count, then: finished)
        wait.timer = loop.schedule(at: loop.now + Self.unmapLimit) { [logger] in
            logger.warning("a transfer uses unmapped memory for more than \(Self.unmapLimit)")
            wait.end()
        }
        for unmapping in pending { unmapping.whenFinished { wait.one() } }
    }
}

/// Calls a body once: when the last of several things has happened, or earlier at a deadline.
private final class BoundedWait {
    private var left: Int
    private var body: (() -> Void)?
    var timer: Watch?

    init(for count: Int, then body: @escaping () -> Void) {
        left = count
        self.body = body
    }

    func one() {
        left -= 1
        if left == 0 { end() }
    }

    func end() {
        timer = nil
        guard let body else { return }
        self.body = nil
        body()
    }
}
