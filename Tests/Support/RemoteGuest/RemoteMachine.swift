// SPDX-License-Identifier: Apache-2.0

internal import DMA
public import GuestKit
internal import Platform
public import VFIOClient

/// A machine whose controller is served over a socket. Time is real.
///
/// A register access cannot throw, so the first error of the connection is kept in ``failure``;
/// registers then read as all ones, as on a bus without the device.
public final class RemoteMachine: Machine {
    public let memory: GuestRAM
    public let client: VMMClient
    /// The first error of the connection.
    public private(set) var failure: (any Error)?
    private var interrupts: [Int] = []

    /// Starts the client and enables MSI-X.
    ///
    /// - Parameter client: a client that maps `memory`.
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

    /// Answers memory requests of the server, then runs it or waits for it.
    private func letTimePass() throws {
        if let qemu = client as? QEMUClient { try qemu.serveMemory() }
        if let whileWaiting = client.wire.whileWaiting { return try whileWaiting() }
        // The first vector is the one that tests use most.
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

/// The kind of VMM.
public enum VMMKind: String, CaseIterable, Sendable {
    case cloudHypervisor
    case qemu
    /// QEMU with guest memory that is not shared, so that each access is a message.
    case qemuWithoutSharedMemory

    /// Starts a machine with this kind of VMM.
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
