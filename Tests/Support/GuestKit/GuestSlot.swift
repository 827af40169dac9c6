// SPDX-License-Identifier: Apache-2.0

public import DMA
public import USB

/// The configuration of an endpoint.
public struct GuestEndpointConfiguration: Sendable {
    public var address: EndpointAddress
    public var type: GuestEndpointContext.EndpointType
    public var maxPacketSize = 512
    public var interval = 0
    public var maxBurst = 0
    /// The segment sizes of its ring, in TRBs.
    public var segments = [32]

    public init(
        _ address: EndpointAddress, _ type: GuestEndpointContext.EndpointType,
        segments: [Int] = [32]
    ) {
        self.address = address
        self.type = type
        self.segments = segments
    }

    public static func bulkIn(_ number: UInt8, segments: [Int] = [32]) -> Self {
        Self(EndpointAddress(number, .in), .bulkIn, segments: segments)
    }

    public static func bulkOut(_ number: UInt8, segments: [Int] = [32]) -> Self {
        Self(EndpointAddress(number, .out), .bulkOut, segments: segments)
    }

    /// - Parameter interval: the exponent of the service interval in microframes.
    public static func isochronous(
        _ number: UInt8, _ direction: Direction, interval: Int = 0, maxPacketSize: Int = 1024,
        maxBurst: Int = 0
    ) -> Self {
        var result = Self(
            EndpointAddress(number, direction),
            direction == .in ? .isochronousIn : .isochronousOut, segments: [64])
        result.maxPacketSize = maxPacketSize
        result.interval = interval
        result.maxBurst = maxBurst
        return result
    }

    public static func interruptIn(_ number: UInt8, segments: [Int] = [32]) -> Self {
        var result = Self(EndpointAddress(number, .in), .interruptIn, segments: segments)
        result.maxPacketSize = 64
        result.interval = 3
        return result
    }
}

/// A device slot (xHCI 4.5) with its contexts and rings.
public final class GuestSlot {
    public let driver: GuestDriver
    public let number: Int
    public let port: Int
    public let inputContext: GuestAddress
    public let deviceContext: GuestAddress
    /// The default control endpoint.
    public let control: GuestEndpoint
    public private(set) var endpoints: [GuestEndpoint] = []

    private var memory: GuestRAM { driver.memory }

    public init(_ driver: GuestDriver, number: Int, port: Int) {
        self.driver = driver
        self.number = number
        self.port = port
        let size = driver.registers.contextSize
        inputContext = driver.memory.allocate(33 * size, boundary: 4096)
        deviceContext = driver.memory.allocate(32 * size, boundary: 4096)
        control = GuestEndpoint(
            driver, slot: number, contextIndex: 1, ring: GuestRing(driver.memory),
            direction: .in, deviceContext: deviceContext)
        driver.memory.store(
            deviceContext.rawValue, at: driver.deviceContexts + number * 8)
    }

    // MARK: - Contexts

    /// The address of a context in the device context: index 0 is the Slot Context, the others are
    /// Endpoint Contexts by Device Context Index.
    public func address(ofContext index: Int) -> GuestAddress {
        deviceContext + index * driver.registers.contextSize
    }

    /// The Slot Context in the device context.
    public var slotContext: GuestSlotContext {
        GuestSlotContext(words: words(at: address(ofContext: 0), 4))
    }

    /// An Endpoint Context in the device context.
    public func endpointContext(_ index: Int) -> GuestEndpointContext {
        GuestEndpointContext(words: words(at: address(ofContext: index), 5))
    }

    private func words(at address: GuestAddress, _ count: Int) -> [UInt32] {
        (0..<count).map { memory.load(UInt32.self, at: address + $0 * 4) }
    }

    /// Clears the input context and writes its add and drop flags (xHCI 6.2.5.1).
    public func prepareInput(add: UInt32, drop: UInt32 = 0) {
        memory.fill(0, at: inputContext, count: 33 * driver.registers.contextSize)
        memory.store(drop, at: inputContext)
        memory.store(add, at: inputContext + 4)
    }

    /// Writes a context of the input context, with the same indices.
    public func writeInput(_ index: Int, _ words: [UInt32]) {
        let start = inputContext + (index + 1) * driver.registers.contextSize
        for (number, word) in words.enumerated() { memory.store(word, at: start + number * 4) }
    }

    /// Max Packet Size of endpoint 0 before its descriptor is read, by the port's speed.
    public var controlPacketSize: Int {
        switch driver.port(port).speed {
        case 1, 2: 8
        case 3: 64
        default: 512
        }
    }

    // MARK: - Commands

    /// Writes the input context of Address Device (xHCI 4.3.3).
    public func prepareAddress() {
        prepareInput(add: 0b11)
        writeInput(
            0,
            GuestSlotContext(port: port, speed: driver.port(port).speed, contextEntries: 1).words)
        writeInput(
            1,
            GuestEndpointContext(
                type: .control, maxPacketSize: controlPacketSize,
                dequeue: control.ring.enqueuePointer, cycle: control.ring.enqueueCycle
            ).words)
    }

    /// Address Device with the input context as it is.
    public func addressCommand(blockingSetAddress: Bool = false) throws -> GuestEvent {
        try driver.command(
            .command(
                .addressDevice, slot: number, parameter: inputContext.rawValue,
                blockingSetAddress ? .blockSetAddress : []))
    }

    /// Address Device.
    public func address(blockingSetAddress: Bool = false) throws {
        prepareAddress()
        let event = try addressCommand(blockingSetAddress: blockingSetAddress)
        guard event.code == .success else {
            throw GuestError.unexpected(event, "address device")
        }
    }

    /// Writes the input context of Configure Endpoint for new endpoints.
    ///
    /// - Returns: the endpoints, which ``endpoints`` does not contain yet.
    public func prepareConfiguration(
        _ wanted: [GuestEndpointConfiguration], drop: UInt32 = 0
    ) -> [GuestEndpoint] {
        let add = wanted.reduce(UInt32(1)) { $0 | 1 << UInt32($1.address.contextIndex) }
        prepareInput(add: add, drop: drop)
        var slot = slotContext
        let highest = wanted.map(\.address.contextIndex).max() ?? 1
        slot.contextEntries = max(slot.contextEntries, highest)
        slot.words[3] = 0
        writeInput(0, slot.words)
        return wanted.map { endpoint in
            let ring = GuestRing(memory, segmentSizes: endpoint.segments)
            writeInput(
                endpoint.address.contextIndex,
                GuestEndpointContext(
                    type: endpoint.type, maxPacketSize: endpoint.maxPacketSize,
                    dequeue: ring.start, interval: endpoint.interval, maxBurst: endpoint.maxBurst
                ).words)
            return GuestEndpoint(
                driver, slot: number, contextIndex: endpoint.address.contextIndex, ring: ring,
                direction: endpoint.address.direction, deviceContext: deviceContext)
        }
    }

    /// Configure Endpoint with the input context as it is.
    public func configureCommand(_ flags: GuestTRB.Flags = []) throws -> GuestEvent {
        try driver.command(
            .command(
                .configureEndpoint, slot: number, parameter: inputContext.rawValue, flags))
    }

    /// Configure Endpoint: adds endpoints.
    @discardableResult
    public func configure(_ wanted: GuestEndpointConfiguration...) throws -> [GuestEndpoint] {
        try configure(wanted)
    }

    /// Configure Endpoint: adds endpoints.
    @discardableResult
    public func configure(_ wanted: [GuestEndpointConfiguration]) throws -> [GuestEndpoint] {
        let added = prepareConfiguration(wanted)
        let event = try configureCommand()
        guard event.code == .success else {
            throw GuestError.unexpected(event, "configure endpoint")
        }
        endpoints += added
        return added
    }

    /// Configure Endpoint: adds one endpoint.
    public func configureOne(_ wanted: GuestEndpointConfiguration) throws -> GuestEndpoint {
        let added = try configure([wanted])
        return added[0]
    }

    /// Disable Slot.
    public func disable() throws { try driver.succeed(.command(.disableSlot, slot: number)) }

    // MARK: - Control transfers

    /// A control transfer as Linux does it: ISP in the Data Stage and IOC in the Status Stage.
    ///
    /// - Returns: the received data of an IN transfer, or the data that was sent.
    @discardableResult
    public func control(_ packet: SetupPacket, data: [UInt8] = []) throws -> [UInt8] {
        let length = Int(packet.length)
        var trbs: [GuestTRB] = [.setup(packet)]
        let buffer = length > 0 ? memory.allocate(length) : memory.base
        if length > 0 {
            if packet.direction == .out { memory.write(data, at: buffer) }
            trbs.append(.data(buffer, length, packet.direction, .interruptOnShortPacket))
        }
        let statusDirection: Direction = length > 0 && packet.direction == .in ? .out : .in
        trbs.append(.status(statusDirection, .interruptOnCompletion))
        let addresses = control.submit(trbs)
        var residue = 0
        while true {
            let event = try driver.wait("end of a control transfer") {
                $0.isTransfer && $0.slot == number && $0.endpoint == 1
            }
            if event.code == .shortPacket, event.pointer == addresses[1] {
                residue = event.length
                continue
            }
            guard event.code == .success, event.pointer == addresses.last else {
                throw GuestError.unexpected(event, "control transfer \(packet)")
            }
            return memory.bytes(at: buffer, count: max(0, length - residue))
        }
    }

    /// SET_CONFIGURATION.
    public func setConfiguration(_ value: UInt16) throws {
        try control(SetupPacket(requestType: 0, request: 9, value: value, index: 0, length: 0))
    }

    /// SET_INTERFACE of the first interface.
    public func setAlternateSetting(_ value: UInt16) throws {
        try control(SetupPacket(requestType: 1, request: 11, value: value, index: 0, length: 0))
    }
}
