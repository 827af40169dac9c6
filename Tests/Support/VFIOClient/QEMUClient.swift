// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// A client that sends and reads the same messages as QEMU's `vfio-user-pci`.
///
/// QEMU's main loop answers requests of the server, and is blocked while a vCPU waits for a reply.
/// So requests that arrive during such a wait are queued here, and answered by ``serveMemory()``
/// and by every wait that is not for a reply.
public final class QEMUClient: VMMClient {
    /// Version data of the length of QEMU's, without the NUL at its end.
    public static let versionData = """
        {"capabilities": {"migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, \
        "max_msg_fds": 16, "max_data_xfer_size": 1048576, "pgsizes": 4096, \
        "max_dma_maps": 65535, "write_multiple": true}}
        """

    /// Memory of the virtual machine. If it is not shared, the server accesses it by messages.
    public struct Memory {
        public let address: UInt64
        public let size: UInt64
        /// The memory that the guest sees.
        public let contents: SharedMemory
        public let isShared: Bool
        public let isWritable: Bool

        public init(
            address: UInt64, contents: SharedMemory, isShared: Bool, isWritable: Bool = true
        ) {
            self.address = address
            size = UInt64(contents.size)
            self.contents = contents
            self.isShared = isShared
            self.isWritable = isWritable
        }
    }

    /// The offset of the data in DMA_READ replies and DMA_WRITE requests. QEMU has a 32-bit count
    /// where the protocol's document has a 64-bit one.
    public var dataOffset = 28
    /// The number of answered memory requests.
    public private(set) var servedRequests = 0
    /// Whether the server's requests stay unanswered, as with a main loop that hangs.
    public var ignoresRequests = false

    private var memory: [Memory]
    /// Requests of the server that arrived during a wait for a reply.
    private var incoming: [WireMessage] = []

    /// The time that QEMU waits for a reply before it disables the device. Tests wait longer, as
    /// their machine may be busy.
    public static let timeout: Duration = .seconds(5)

    public init(wire: WireClient, memory: [Memory]) {
        self.memory = memory
        super.init(wire: wire)
    }

    // MARK: - Start

    public override func start() throws {
        try negotiate()
        try addMemory()
        try describe()
    }

    private func negotiate() throws {
        let request = WireMessage(
            id: wire.makeID(), command: Command.version,
            payload: WireMessage.version(minor: 0, json: Array(Self.versionData.utf8) + [0]))
        try wire.send(request)
        let reply = try receiveReply(to: request.id, longest: request.size)
        guard !reply.isError, reply.payload.count > 4 else { throw Failure("no version") }
        guard reply.payload.integer(UInt32.self, at: 0) == 0 else {
            throw Failure("the minor version is more than was offered")
        }
        guard reply.payload.last == 0 else { throw Failure("the version data has no NUL") }
    }

    /// Sends all DMA_MAP requests before it reads a reply.
    private func addMemory() throws {
        var ids: [UInt16] = []
        for part in memory { ids.append(try sendMap(part)) }
        for id in ids {
            let reply = try receiveReply(to: id, longest: 48)
            if reply.isError { throw Failure("DMA_MAP failed with error \(reply.error)") }
        }
    }

    private func sendMap(_ part: Memory) throws -> UInt16 {
        let id = wire.makeID()
        try wire.send(
            WireMessage(
                id: id, command: Command.dmaMap,
                payload: WireMessage.dmaMap(
                    flags: part.isWritable ? 3 : 1, offset: 0, address: part.address,
                    size: part.size)),
            descriptors: part.isShared ? [part.contents.descriptor] : [])
        return id
    }

    private func describe() throws {
        let info = try request(Command.getInfo, WireMessage.getInfo(argsz: 16), longest: 32)
        let regionCount = info.payload.integer(UInt32.self, at: 8)
        interruptTypes = Int(info.payload.integer(UInt32.self, at: 12))
        guard (8...100).contains(regionCount) else { throw Failure("\(regionCount) regions") }
        guard (3...50).contains(interruptTypes) else {
            throw Failure("\(interruptTypes) interrupt types")
        }
        regions = [RegionInfo](
            repeating: RegionInfo(flags: 0, size: 0), count: Int(regionCount))
        for index in [0, 1, 2, 3, 4, 5, Region.configuration] {
            let reply = try request(
                Command.getRegionInfo, WireMessage.regionInfo(index: index), longest: 48)
            guard reply.size == 48, reply.payload.integer(UInt32.self, at: 0) == 32 else {
                throw Failure("region \(index) is described in \(reply.size) bytes")
            }
            regions[Int(index)] = RegionInfo(
                flags: reply.payload.integer(at: 4), size: reply.payload.integer(at: 16))
        }
        for index in 3..<min(UInt32(interruptTypes), 5) { _ = try interruptCount(index) }

        // The whole configuration space is read with one request.
        let size = Int(regions[Int(Region.configuration)].size)
        guard size == 256 || size == 4096 else { throw Failure("\(size) bytes of configuration") }
        let configuration = try readRegion(Region.configuration, at: 0, count: size)
        var offset = Int(configuration[0x34])
        var visited = 0
        while offset != 0, visited < 48 {
            visited += 1
            if configuration[offset] == 0x11 {
                guard try interruptCount(IRQ.msix) > 0 else { throw Failure("no MSI-X vectors") }
                recordMSIX(
                    at: UInt64(offset), control: configuration.integer(at: offset + 2),
                    table: configuration.integer(at: offset + 4),
                    pending: configuration.integer(at: offset + 8))
            }
            offset = Int(configuration[offset + 1])
        }
    }

    private func interruptCount(_ index: UInt32) throws -> UInt32 {
        try request(Command.getIRQInfo, WireMessage.irqInfo(index: index), longest: 32)
            .payload.integer(at: 12)
    }

    // MARK: - Registers

    public override func readRegion(
        _ region: UInt32, at offset: UInt64, count: Int
    ) throws -> [UInt8] {
        let reply = try request(
            Command.regionRead,
            WireMessage.region(region, offset: offset, count: UInt32(count)),
            longest: 32 + count)
        guard reply.payload.count == 16 + count else {
            throw Failure("\(reply.payload.count - 16) bytes read, not \(count)")
        }
        return Array(reply.payload[16...])
    }

    /// Writes to registers are posted; writes to the configuration space wait for the reply.
    public override func writeRegion(_ region: UInt32, at offset: UInt64, _ bytes: [UInt8]) throws {
        let payload = WireMessage.region(
            region, offset: offset, count: UInt32(bytes.count), data: bytes)
        guard region != Region.configuration else {
            let reply = try request(Command.regionWrite, payload, longest: 32 + bytes.count)
            if reply.isError { throw Failure("a write failed with error \(reply.error)") }
            return
        }
        try wire.send(
            WireMessage(
                id: wire.makeID(), command: Command.regionWrite, flags: WireMessage.noReply,
                payload: payload))
    }

    /// Sends several writes in one message, as QEMU does when many are queued.
    public func writeRegions(
        _ writes: [(region: UInt32, offset: UInt64, bytes: [UInt8])]
    ) throws {
        var payload = [UInt8](littleEndian: UInt64(writes.count))
        for write in writes {
            payload += WireMessage.region(
                write.region, offset: write.offset, count: UInt32(write.bytes.count),
                data: write.bytes + [UInt8](repeating: 0, count: 8 - write.bytes.count))
        }
        try wire.send(
            WireMessage(
                id: wire.makeID(), command: Command.regionWriteMulti, flags: WireMessage.noReply,
                payload: payload))
    }

    // MARK: - Memory

    /// Maps memory while the machine runs.
    public func add(_ part: Memory) throws {
        memory.append(part)
        let reply = try receiveReply(to: try sendMap(part), longest: 48)
        if reply.isError { throw Failure("DMA_MAP failed with error \(reply.error)") }
    }

    /// Unmaps memory while the machine runs.
    public func remove(address: UInt64) throws {
        guard let index = memory.firstIndex(where: { $0.address == address }) else {
            throw Failure("no memory at \(address)")
        }
        let part = memory.remove(at: index)
        let reply = try request(
            Command.dmaUnmap, WireMessage.dmaUnmap(address: part.address, size: part.size),
            longest: 40)
        if reply.isError { throw Failure("DMA_UNMAP failed with error \(reply.error)") }
    }

    public func reset() throws {
        let reply = try request(Command.reset, [], longest: 16)
        if reply.isError { throw Failure("DEVICE_RESET failed with error \(reply.error)") }
    }

    /// Runs the main loop once: answers the queued memory requests of the server and those that
    /// have arrived.
    public func serveMemory() throws {
        while let bytes = try wire.receiveIfAny() {
            let message = WireMessage(bytes: bytes)
            guard !message.isReply else { throw Failure("an unexpected reply: \(message)") }
            incoming.append(message)
        }
        if ignoresRequests { return }
        while !incoming.isEmpty { try answer(incoming.removeFirst()) }
    }

    /// Waits for a memory request of the server and queues it, as if a vCPU held the lock at that
    /// moment.
    @discardableResult
    public func awaitRequest() throws -> WireMessage {
        if let first = incoming.first { return first }
        let message = try wire.receiveMessage()
        guard !message.isReply else { throw Failure("an unexpected reply: \(message)") }
        incoming.append(message)
        return message
    }

    override func waitForInterruptOrMessage(_ vector: Int) throws {
        try serveMemory()
        try super.waitForInterruptOrMessage(vector)
    }

    private func answer(_ request: WireMessage) throws {
        let address = request.payload.integer(UInt64.self, at: 0)
        let count64 = request.payload.integer(UInt64.self, at: 8)
        let count = dataOffset == 28 ? count64 & 0xffff_ffff : count64
        var reply = WireMessage(
            id: request.id, command: request.command, flags: WireMessage.reply)
        defer { servedRequests += 1 }
        guard request.size >= 32 else { return try refuse(&reply, 22) }
        guard count <= 1 << 20 else { return try refuse(&reply, 7) }
        let isWrite = request.command == Command.dmaWrite
        guard request.command == Command.dmaRead || isWrite else { return try refuse(&reply, 38) }
        // An access of 0 bytes succeeds at any address.
        if count == 0, request.command == Command.dmaRead {
            reply.payload = Array(request.payload[..<16])
            return try wire.send(reply)
        }
        guard
            let part = memory.first(where: {
                address >= $0.address && address - $0.address + count <= $0.size
            })
        else { return try refuse(&reply, 19) }
        let offset = Int(address - part.address)
        if isWrite {
            guard request.size >= 32 + Int(count) else { return try refuse(&reply, 7) }
            guard part.isWritable else { return try refuse(&reply, 1) }
            let start = dataOffset - 16
            part.contents.write(
                Array(request.payload[start..<start + Int(count)]), at: offset)
            if dataOffset == 32 { reply.payload = Array(request.payload[..<16]) }
        } else {
            // Data at offset 28 overlaps the end of the fixed part, and is followed by zeroes.
            reply.payload = Array(request.payload[..<(dataOffset - 16)])
            reply.payload += part.contents.bytes(at: offset, count: Int(count))
            reply.payload += [UInt8](repeating: 0, count: 32 - dataOffset)
        }
        try wire.send(reply)
    }

    private func refuse(_ reply: inout WireMessage, _ error: UInt32) throws {
        reply.flags |= WireMessage.error
        reply.error = error
        try wire.send(reply)
    }

    // MARK: - Replies

    private func request(
        _ command: UInt16, _ payload: [UInt8], longest: Int
    ) throws -> WireMessage {
        let id = wire.makeID()
        try wire.send(WireMessage(id: id, command: command, payload: payload))
        return try receiveReply(to: id, longest: longest)
    }

    /// Receives messages until the reply arrives. QEMU disables the device after a reply to another
    /// request or one that is longer than its buffer.
    private func receiveReply(to id: UInt16, longest: Int) throws -> WireMessage {
        while true {
            let message = try wire.receiveMessage()
            guard message.isReply else {
                incoming.append(message)
                continue
            }
            guard message.id == id else { throw Failure("an unexpected reply \(message.id)") }
            guard message.size <= longest else {
                throw Failure("a reply of \(message.size) bytes for \(longest)")
            }
            return message
        }
    }
}
