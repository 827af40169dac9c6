// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// The operations of a VMM on a device. Subclasses send them as one kind of VMM does.
public class VMMClient {
    public typealias Failure = WireClient.Failure
    typealias Command = WireMessage.Command

    public enum Region {
        public static let registers: UInt32 = 0
        public static let configuration: UInt32 = 7
    }

    public enum IRQ {
        public static let intx: UInt32 = 0
        public static let msi: UInt32 = 1
        public static let msix: UInt32 = 2
    }

    /// The description of a region.
    public struct RegionInfo: Equatable, Sendable {
        public let flags: UInt32
        public let size: UInt64
    }

    /// The contents of an MSI-X capability.
    public struct MSIX: Equatable, Sendable {
        /// The offset of the capability in the configuration space.
        public let offset: UInt64
        public let vectors: Int
        public let tableRegion: UInt32, tableOffset: UInt64
        public let pendingRegion: UInt32, pendingOffset: UInt64
    }

    public let wire: WireClient
    public internal(set) var regions: [RegionInfo] = []
    public internal(set) var interruptTypes = 0
    public internal(set) var msix: MSIX?
    /// The eventfds of the MSI-X vectors while MSI-X is enabled.
    public private(set) var events: [EventFD] = []

    public init(wire: WireClient) { self.wire = wire }

    /// Sends the requests that the VMM sends before its guest runs.
    public func start() throws { throw Failure("start() is not overridden") }

    // MARK: - Registers

    public func readRegion(_ region: UInt32, at offset: UInt64, count: Int) throws -> [UInt8] {
        throw Failure("readRegion is not overridden")
    }

    public func writeRegion(_ region: UInt32, at offset: UInt64, _ bytes: [UInt8]) throws {
        throw Failure("writeRegion is not overridden")
    }

    /// Reads a register of BAR 0.
    public func readRegister<Value: FixedWidthInteger & UnsignedInteger>(
        _ offset: UInt64, as type: Value.Type = Value.self
    ) throws -> Value {
        try readRegion(Region.registers, at: offset, count: MemoryLayout<Value>.size)
            .integer(at: 0)
    }

    /// Writes a register of BAR 0.
    public func writeRegister<Value: FixedWidthInteger & UnsignedInteger>(
        _ offset: UInt64, _ value: Value
    ) throws {
        try writeRegion(Region.registers, at: offset, Array(littleEndian: value))
    }

    public func readConfiguration<Value: FixedWidthInteger & UnsignedInteger>(
        _ offset: UInt64, as type: Value.Type = Value.self
    ) throws -> Value {
        try readRegion(Region.configuration, at: offset, count: MemoryLayout<Value>.size)
            .integer(at: 0)
    }

    public func writeConfiguration<Value: FixedWidthInteger & UnsignedInteger>(
        _ offset: UInt64, _ value: Value
    ) throws {
        try writeRegion(Region.configuration, at: offset, Array(littleEndian: value))
    }

    // MARK: - Memory

    /// Maps a part of a file as guest memory.
    public func mapMemory(
        _ descriptor: CInt, offset: UInt64 = 0, at address: UInt64, size: UInt64,
        writable: Bool = true
    ) throws {
        let reply = try wire.request(
            Command.dmaMap,
            WireMessage.dmaMap(
                flags: writable ? 3 : 1, offset: offset, address: address, size: size),
            descriptors: [descriptor])
        guard reply.size == 16 else { throw Failure("a reply to DMA_MAP of \(reply.size) bytes") }
        if reply.isError { throw Failure("DMA_MAP failed with error \(reply.error)") }
    }

    public func unmapMemory(at address: UInt64, size: UInt64) throws {
        let reply = try wire.request(
            Command.dmaUnmap, WireMessage.dmaUnmap(address: address, size: size))
        guard reply.size == 40 else {
            throw Failure("a reply to DMA_UNMAP of \(reply.size) bytes")
        }
        if reply.isError { throw Failure("DMA_UNMAP failed with error \(reply.error)") }
    }

    // MARK: - Interrupts

    /// Connects an eventfd to each MSI-X vector, then sets the enable bit, as both VMMs do.
    public func enableMSIX() throws {
        guard let msix else { throw Failure("the device has no MSI-X") }
        events = try (0..<msix.vectors).map { _ in try EventFD() }
        try connectEvents()
        let control: UInt16 = try readConfiguration(msix.offset + 2)
        try writeConfiguration(msix.offset + 2, control | 0x8000)
    }

    /// Sends the eventfds, at most 16 in a message.
    func connectEvents() throws {
        for start in stride(from: 0, to: events.count, by: 16) {
            let batch = events[start..<min(start + 16, events.count)]
            let reply = try wire.request(
                Command.setIRQs,
                WireMessage.setIRQs(
                    flags: IRQSet.dataEventFD | IRQSet.trigger, index: IRQ.msix,
                    start: UInt32(start), count: UInt32(batch.count)),
                descriptors: batch.map(\.descriptor))
            if reply.isError { throw Failure("SET_IRQS failed with error \(reply.error)") }
        }
    }

    /// Disconnects all eventfds and clears the enable bit.
    public func disableMSIX() throws {
        events = []
        let reply = try wire.request(
            Command.setIRQs,
            WireMessage.setIRQs(
                flags: IRQSet.dataNone | IRQSet.trigger, index: IRQ.msix, start: 0, count: 0))
        if reply.isError { throw Failure("SET_IRQS failed with error \(reply.error)") }
        guard let msix else { return }
        let control: UInt16 = try readConfiguration(msix.offset + 2)
        try writeConfiguration(msix.offset + 2, control & ~0x8000)
    }

    /// Waits for an interrupt and takes it; `false` at the timeout.
    public func waitForInterrupt(
        _ vector: Int, atMost limit: Duration = .seconds(10)
    ) throws -> Bool {
        guard events.indices.contains(vector) else { throw Failure("no vector \(vector)") }
        let deadline = ContinuousClock.now + limit
        while events[vector].take() == 0 {
            guard ContinuousClock.now < deadline else { return false }
            try waitForInterruptOrMessage(vector)
        }
        return true
    }

    /// Runs the server, or waits for it, during a wait for an interrupt.
    func waitForInterruptOrMessage(_ vector: Int) throws {
        if let whileWaiting = wire.whileWaiting { return try whileWaiting() }
        _ = try events[vector].poll(atMost: .milliseconds(10))
    }

    /// Records the MSI-X capability at an offset of the configuration space.
    func recordMSIX(at offset: UInt64, control: UInt16, table: UInt32, pending: UInt32) {
        msix = MSIX(
            offset: offset, vectors: Int(control & 0x7ff) + 1,
            tableRegion: table & 7, tableOffset: UInt64(table & ~7),
            pendingRegion: pending & 7, pendingOffset: UInt64(pending & ~7))
    }

    // MARK: - Disconnect

    /// Closes the socket, as when the VMM is killed.
    public func kill() { wire.close() }
}
