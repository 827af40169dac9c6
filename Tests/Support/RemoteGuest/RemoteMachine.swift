// SPDX-License-Identifier: Apache-2.0

internal import DMA
public import GuestKit
internal import Platform
public import VFIOClient

/// A machine whose controller is served over a socket, by a virtual machine monitor of our own.
///
/// Time is real. What goes wrong on the socket is kept in ``failure``, since a guest's registers have
/// no way to throw: they read as all ones, as they do on a bus whose device has gone.
public final class RemoteMachine: Machine {
    public let memory: GuestRAM
    public let client: VMMClient
    /// The first thing that went wrong on the socket.
    public private(set) var failure: (any Error)?
    private var interrupts: [Int] = []

    /// A machine whose monitor has connected, mapped memory and enabled MSI-X.
    ///
    /// - Parameter connect: makes the monitor; it must give ``memory`` to the server.
    public init(memory: GuestRAM, client: VMMClient) throws {
        self.memory = memory
        self.client = client
        try client.start()
        try client.enableMSIX()
        interrupts = client.events.map { _ in 0 }
    }

    public func readRegister(at offset: Int, count: Int) -> [UInt8] {
        attempt { try client.readRegion(0, at: UInt64(offset), count: count) }
            ?? Array(repeating: 0xff, count: count)
    }

    public func writeRegister(at offset: Int, _ bytes: [UInt8]) {
        attempt { try client.writeRegion(0, at: UInt64(offset), bytes) }
    }

    public func interruptCount(vector: Int) -> Int {
        collectInterrupts()
        return interrupts.indices.contains(vector) ? interrupts[vector] : 0
    }

    public func advance(limit: Duration, until condition: () -> Bool) -> Bool {
        let end = ContinuousClock.now + limit
        while true {
            if condition() { return true }
            guard failure == nil, ContinuousClock.now < end else { return false }
            attempt { try letTimePass() }
        }
    }

    /// Answers the server if it asks for memory, and lets it work.
    private func letTimePass() throws {
        if let qemu = client as? QEMUClient { try qemu.serveMemory() }
        if let whileWaiting = client.wire.whileWaiting { return try whileWaiting() }
        // Wakes with the interrupt that is most likely to come.
        _ = try client.events.first?.poll(atMost: .milliseconds(1))
        collectInterrupts()
    }

    private func collectInterrupts() {
        for (vector, event) in client.events.enumerated() where interrupts.indices.contains(vector)
        {
            interrupts[vector] += Int(clamping: event.take())
        }
    }

    @discardableResult
    private func attempt<Result>(_ body: () throws -> Result) -> Result? {
        do {
            return try body()
        } catch {
            if failure == nil { failure = error }
            return nil
        }
    }
}

/// How a machine's monitor speaks.
public enum Monitor: String, CaseIterable, Sendable {
    case cloudHypervisor
    case qemu
    /// QEMU whose guest's memory is not shared: each access is a message.
    case qemuWithoutSharedMemory

    /// Starts a machine whose monitor speaks so.
    public func start(memory: GuestRAM, wire: WireClient) throws -> RemoteMachine {
        let descriptor = try memory.descriptor()
        let address = memory.base.rawValue
        let client: VMMClient
        switch self {
        case .cloudHypervisor:
            client = CloudHypervisorClient(
                wire: wire,
                memory: [
                    .init(
                        descriptor: descriptor.rawValue, address: address,
                        size: UInt64(memory.size))
                ])
        case .qemu, .qemuWithoutSharedMemory:
            let contents = try SharedMemory(descriptor, size: memory.size)
            client = QEMUClient(
                wire: wire,
                memory: [
                    .init(
                        address: address, contents: contents,
                        isShared: self != .qemuWithoutSharedMemory)
                ])
            return try RemoteMachine(memory: memory, client: client)
        }
        let machine = try RemoteMachine(memory: memory, client: client)
        withExtendedLifetime(descriptor) {}
        return machine
    }
}
