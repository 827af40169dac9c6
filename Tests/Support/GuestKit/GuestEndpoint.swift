// SPDX-License-Identifier: Apache-2.0

public import DMA
public import USB

/// An endpoint, or a stream of one, with its transfer ring.
public final class GuestEndpoint {
    public let driver: GuestDriver
    public let slot: Int
    /// The Device Context Index, which is also the doorbell target.
    public let contextIndex: Int
    public let direction: Direction
    /// 0 for an endpoint without streams.
    public let stream: Int
    /// SCT of the stream's context.
    private let streamType: UInt64
    public private(set) var ring: GuestRing
    private let deviceContext: GuestAddress

    public init(
        _ driver: GuestDriver, slot: Int, contextIndex: Int, ring: GuestRing,
        direction: Direction, deviceContext: GuestAddress, stream: Int = 0, streamType: UInt64 = 0
    ) {
        self.driver = driver
        self.slot = slot
        self.contextIndex = contextIndex
        self.ring = ring
        self.direction = direction
        self.deviceContext = deviceContext
        self.stream = stream
        self.streamType = streamType
    }

    private var memory: GuestRAM { driver.memory }

    /// The Endpoint Context in the device context.
    public var context: GuestEndpointContext {
        let start = deviceContext + contextIndex * driver.registers.contextSize
        return GuestEndpointContext(
            words: (0..<5).map { memory.load(UInt32.self, at: start + $0 * 4) })
    }

    public func ringDoorbell(stream: Int? = nil) {
        driver.ringDoorbell(slot: slot, target: contextIndex, stream: stream ?? self.stream)
    }

    /// Enqueues TRBs and rings the doorbell.
    ///
    /// - Returns: the addresses of the TRBs.
    @discardableResult
    public func submit(_ trbs: [GuestTRB]) -> [GuestAddress] {
        let addresses = ring.push(trbs)
        ringDoorbell()
        return addresses
    }

    @discardableResult
    public func submit(_ trb: GuestTRB) -> GuestAddress {
        let addresses = submit([trb])
        return addresses[0]
    }

    /// Waits for the next Transfer Event of this endpoint and takes it.
    public func event(limit: Duration = .seconds(10)) throws -> GuestEvent {
        try driver.wait("event of slot \(slot) endpoint \(contextIndex)", limit: limit) {
            $0.isTransfer && $0.slot == slot && $0.endpoint == contextIndex
        }
    }

    // MARK: - Commands

    /// Stop Endpoint.
    @discardableResult
    public func stop() throws -> GuestEvent {
        try driver.command(.command(.stopEndpoint, slot: slot, endpoint: contextIndex))
    }

    /// Reset Endpoint.
    @discardableResult
    public func reset(preservingTransferState: Bool = false) throws -> GuestEvent {
        try driver.command(
            .command(
                .resetEndpoint, slot: slot, endpoint: contextIndex,
                preservingTransferState ? .preserveTransferState : []))
    }

    /// Set TR Dequeue Pointer; without arguments, to the enqueue pointer.
    @discardableResult
    public func setDequeuePointer(
        _ pointer: GuestAddress? = nil, cycle: Bool? = nil
    ) throws -> GuestEvent {
        try driver.command(
            .setDequeuePointer(
                slot: slot, endpoint: contextIndex, pointer ?? ring.enqueuePointer,
                cycle: cycle ?? ring.enqueueCycle, stream: stream, streamType: streamType))
    }

    /// Replaces the ring. The controller learns of it by ``setDequeuePointer(_:cycle:)``.
    public func replaceRing(_ other: GuestRing) { ring = other }

    // MARK: - Whole transfers

    /// The TRBs of a bulk or interrupt TD as Linux writes them: split at 64 KiB boundaries,
    /// chained, with IOC on the last and, for IN, ISP on all.
    public func trbs(_ buffer: GuestAddress, _ count: Int) -> [GuestTRB] {
        var trbs: [GuestTRB] = []
        var done = 0
        repeat {
            let address = buffer + done
            let toBorder = 65536 - Int(address.rawValue & 0xffff)
            let length = min(toBorder, count - done)
            done += length
            var flags: GuestTRB.Flags = direction == .in ? .interruptOnShortPacket : []
            flags.insert(done < count ? .chain : .interruptOnCompletion)
            trbs.append(.normal(address, length, flags, tdSize: min(31, (count - done) / 512)))
        } while done < count
        return trbs
    }

    /// The number of bytes that a TD moved, computed from its last event as Linux does: the lengths
    /// up to the TRB of the event, less the residue.
    public static func transferred(
        _ event: GuestEvent, trbs: [GuestTRB], addresses: [GuestAddress]
    ) -> Int? {
        guard let index = addresses.firstIndex(of: event.pointer) else { return nil }
        return trbs[..<index].reduce(0) { $0 + $1.length } + trbs[index].length - event.length
    }

    /// Receives up to `count` bytes.
    public func receive(_ count: Int) throws -> [UInt8] {
        let buffer = memory.allocate(max(count, 1))
        return memory.bytes(at: buffer, count: try transfer(buffer, count))
    }

    /// Sends bytes.
    ///
    /// - Returns: the number of bytes that the device received.
    @discardableResult
    public func send(_ bytes: [UInt8]) throws -> Int {
        let buffer = memory.allocate(max(bytes.count, 1))
        memory.write(bytes, at: buffer)
        return try transfer(buffer, bytes.count)
    }

    private func transfer(_ buffer: GuestAddress, _ count: Int) throws -> Int {
        let trbs = trbs(buffer, count)
        let addresses = submit(trbs)
        var wanted: Set<GuestAddress> = Set(addresses)
        wanted.insert(addresses[0])
        let event = try driver.wait("end of a transfer of \(count) bytes") {
            $0.isTransfer && $0.slot == slot && $0.endpoint == contextIndex
                && wanted.contains($0.pointer)
        }
        guard event.code == .success || event.code == .shortPacket,
            let moved = Self.transferred(event, trbs: trbs, addresses: addresses)
        else { throw GuestError.unexpected(event, "transfer of \(count) bytes") }
        if event.code == .shortPacket, event.pointer != addresses.last {
            // The second event of the same TD, if the controller sends one (xHCI 4.10.1.1).
            _ = driver.machine.advance(limit: .milliseconds(1)) {
                driver.collect()
                return false
            }
            driver.discard { $0.isTransfer && $0.pointer == addresses.last }
        }
        return moved
    }
}
