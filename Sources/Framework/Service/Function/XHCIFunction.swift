// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import Logging
internal import PCI
internal import Platform
internal import SystemPackage
internal import VFIOUser
internal import XHCI

/// The controller as a PCI function behind vfio-user: a ``VFIODevice`` made of a ``Controller``, a
/// configuration space and MSI-X messages.
///
/// It only connects the three: the controller interprets registers, the session interprets
/// messages. It exists as long as the program; ``clientDisconnected()`` prepares it for the next
/// client.
///
/// While the controller waits for guest memory that is accessed by messages, the client's requests
/// are served within ``service(now:)``; ``Controller`` documents which of them are allowed then.
final class XHCIFunction: VFIODevice {
    /// The time for which the controller pauses after the client has unmapped memory. An access of
    /// the guest ends the pause.
    ///
    /// QEMU remaps memory, for example when firmware write-protects its own: it unmaps a region,
    /// perhaps all of main memory, and maps it again in other regions. A controller that read a
    /// ring in between would find no memory there and fail. The guest is stopped meanwhile, so its
    /// next access shows that the memory is mapped again; the timeout is for a guest that makes
    /// none.
    static let remappingTime: Duration = .milliseconds(50)

    let controller: Controller
    let regions = XHCIIdentity.regions
    let interrupts: [InterruptDescription]

    private let memory = GuestMemory()
    private let messages: InterruptMessages
    private var configuration: ConfigurationSpace
    private let loop: any EventLoop
    private let logger: Logger
    /// The time until which the controller pauses because the client remaps memory.
    private var pausedUntil: Duration?
    /// The owner of the object that `memory` refers to weakly.
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
            count: layout.vectorCount, flags: [.eventFD, .maskable])
        // The error interrupt is never raised, but QEMU prints a warning for a device without it.
        types[InterruptDescription.PCI.error] = InterruptDescription(count: 1, flags: .eventFD)
        interrupts = types
    }

    /// Services the controller.
    ///
    /// - Returns: the time at which it must be serviced next; `nil` if only an event requires it.
    func service(now: Duration) -> Duration? {
        if let pausedUntil, now < pausedUntil { return pausedUntil }
        pausedUntil = nil
        return controller.service(now: now)
    }

    /// Prepares for a client, which serves accesses to memory without a descriptor.
    func clientConnected(_ connection: Connection) {
        let remote = RemoteMemoryByMessages(connection)
        remoteMemory = remote
        memory.remote = remote
    }

    /// Resets the function and unmaps the client's memory; devices stay attached.
    func clientDisconnected() {
        pausedUntil = nil
        remoteMemory = nil
        messages.disconnectAll()
        // Revokes all leases, so that the regions are unmapped when they are released.
        reset()
        _ = memory.unmapAll()
    }

    // MARK: - Regions

    func readRegion(_ index: Int, at offset: Int, into bytes: inout OutputSpan<UInt8>) {
        pausedUntil = nil
        switch index {
        case XHCIIdentity.registers.index:
            controller.read(at: offset, into: &bytes, now: loop.now)
        case XHCIIdentity.interruptMemory.index:
            messages.read(at: offset, into: &bytes)
        case RegionDescription.PCI.configuration:
            configuration.read(at: offset, into: &bytes)
        default:
            // An absent region has no bytes; the session fills the reply with ones.
            break
        }
    }

    func writeRegion(_ index: Int, at offset: Int, from bytes: Span<UInt8>) {
        pausedUntil = nil
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

    func reset() {
        pausedUntil = nil
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
    ) throws(MemoryMapError) {
        let start = GuestAddress(address)
        let writable = access.contains(.write)
        do throws(MapError) {
            if let file = file.take() {
                try memory.map(file, offset: offset, count: count, at: start, writable: writable)
            } else {
                try memory.mapRemote(count: count, at: start, writable: writable)
            }
        } catch {
            throw MemoryMapError(error.errno, "\(error)")
        }
    }

    func unmapMemory(at address: UInt64, count: UInt64) throws(Errno) {
        let region = try memory.unmap(GuestAddress(address), count: count)
        pausedUntil = loop.now + Self.remappingTime
        controller.endAccess(to: region)
    }

    func unmapAllMemory() {
        for region in memory.unmapAll() { controller.endAccess(to: region) }
    }
}
