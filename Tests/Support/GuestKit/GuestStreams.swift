// SPDX-License-Identifier: Apache-2.0

public import DMA
public import USB

/// A bulk endpoint with streams (xHCI 4.12): an array of Stream Contexts and a ring for each.
public final class GuestStreams {
    /// The layout of the primary array.
    public enum Layout: Sendable {
        /// LSA = 1: each entry is a stream.
        case linear
        /// LSA = 0: each entry points to a secondary array of 8 streams, or to a ring if the set
        /// contains it.
        case secondary(rings: Set<Int>)
    }

    public let driver: GuestDriver
    public let slot: Int
    public let contextIndex: Int
    public let array: GuestAddress
    /// By Stream ID.
    public private(set) var rings: [Int: GuestRing] = [:]
    private var contexts: [Int: (address: GuestAddress, type: UInt64)] = [:]
    private let direction: Direction
    private let segments: [Int]
    private let deviceContext: GuestAddress

    private var memory: GuestRAM { driver.memory }

    /// Writes the arrays and configures the endpoint.
    ///
    /// - Parameters:
    ///   - maxPrimaryStreams: the primary array has 2^(n+1) entries.
    ///   - segments: the segment sizes of the rings, in TRBs.
    public init(
        _ guestSlot: GuestSlot, _ address: EndpointAddress, maxPrimaryStreams: Int,
        layout: Layout = .linear, segments: [Int] = [16]
    ) throws {
        driver = guestSlot.driver
        slot = guestSlot.number
        contextIndex = address.contextIndex
        deviceContext = guestSlot.deviceContext
        direction = address.direction
        self.segments = segments
        let count = 2 << maxPrimaryStreams
        array = driver.memory.allocate(count * 16, alignment: 64)
        for primary in 1..<count {
            switch layout {
            case .linear: addRing(primary, at: array + primary * 16, type: 1)
            case .secondary(let rings) where rings.contains(primary):
                addRing(primary, at: array + primary * 16, type: 1)
            case .secondary:
                let secondary = driver.memory.allocate(8 * 16, alignment: 64)
                driver.memory.store(secondary.rawValue | 2 << 1, at: array + primary * 16)
                for entry in 0..<8 {
                    addRing(entry * count + primary, at: secondary + entry * 16, type: 0)
                }
            }
        }
        try configure(guestSlot, address, maxPrimaryStreams, layout)
    }

    private func addRing(_ id: Int, at context: GuestAddress, type: UInt64) {
        let ring = GuestRing(memory, segmentSizes: segments)
        memory.store(ring.start.rawValue | type << 1 | 1, at: context)
        rings[id] = ring
        contexts[id] = (context, type)
    }

    private func configure(
        _ guestSlot: GuestSlot, _ address: EndpointAddress, _ maxPrimaryStreams: Int,
        _ layout: Layout
    ) throws {
        guestSlot.prepareInput(add: 1 | 1 << UInt32(contextIndex))
        var context = guestSlot.slotContext
        context.contextEntries = max(context.contextEntries, contextIndex)
        context.words[3] = 0
        guestSlot.writeInput(0, context.words)
        var endpoint = GuestEndpointContext(
            type: address.direction == .in ? .bulkIn : .bulkOut, maxPacketSize: 1024,
            dequeue: array, cycle: false)
        endpoint.words[0] |= UInt32(maxPrimaryStreams) << 10
        if case .linear = layout { endpoint.words[0] |= 1 << 15 }
        guestSlot.writeInput(contextIndex, endpoint.words)
        let event = try guestSlot.configureCommand()
        guard event.code == .success else {
            throw GuestError.unexpected(event, "configure endpoint with streams")
        }
    }

    /// The Endpoint Context in the device context.
    public var context: GuestEndpointContext {
        let start = deviceContext + contextIndex * driver.registers.contextSize
        return GuestEndpointContext(
            words: (0..<5).map { memory.load(UInt32.self, at: start + $0 * 4) })
    }

    /// The first 64 bits of a Stream Context: TR Dequeue Pointer, SCT and DCS.
    public func pointer(of stream: Int) -> UInt64 {
        contexts[stream].map { memory.load(UInt64.self, at: $0.address) } ?? 0
    }

    /// A stream as an endpoint of its own; `nil` if the ID is not in use.
    public func endpoint(_ stream: Int) -> GuestEndpoint? {
        guard let ring = rings[stream], let context = contexts[stream] else { return nil }
        return GuestEndpoint(
            driver, slot: slot, contextIndex: contextIndex, ring: ring, direction: direction,
            deviceContext: deviceContext, stream: stream, streamType: context.type)
    }

    public func ringDoorbell(_ stream: Int) {
        driver.ringDoorbell(slot: slot, target: contextIndex, stream: stream)
    }

    /// Enqueues TRBs on a stream's ring and rings its doorbell.
    @discardableResult
    public func submit(_ stream: Int, _ trbs: [GuestTRB]) -> [GuestAddress] {
        let addresses = rings[stream]?.push(trbs) ?? []
        ringDoorbell(stream)
        return addresses
    }

    /// Waits for the next Transfer Event of this endpoint and takes it.
    public func event() throws -> GuestEvent {
        try driver.wait("event of slot \(slot) endpoint \(contextIndex)") {
            $0.isTransfer && $0.slot == slot && $0.endpoint == contextIndex
        }
    }

    @discardableResult
    public func stop() throws -> GuestEvent {
        try driver.command(.command(.stopEndpoint, slot: slot, endpoint: contextIndex))
    }

    @discardableResult
    public func reset() throws -> GuestEvent {
        try driver.command(.command(.resetEndpoint, slot: slot, endpoint: contextIndex))
    }

    /// Set TR Dequeue Pointer of a stream, to its enqueue pointer.
    public func setDequeuePointer(_ stream: Int, streamType: UInt64 = 1) throws -> GuestEvent {
        let ring = rings[stream]
        return try driver.command(
            .setDequeuePointer(
                slot: slot, endpoint: contextIndex, ring?.enqueuePointer ?? array,
                cycle: ring?.enqueueCycle ?? true, stream: stream, streamType: streamType))
    }
}
