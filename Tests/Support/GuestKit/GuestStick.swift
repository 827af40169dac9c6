// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import Platform
internal import USB

/// A guest's driver of a USB stick: Bulk-Only Transport with the SCSI commands that tests need.
public final class GuestStick {
    public struct Failure: Error, CustomStringConvertible {
        public let description: String
    }

    public static let blockSize = 512
    /// Blocks moved by one command.
    public static let blocksPerCommand = 256

    public let driver: GuestDriver
    private let slot: GuestSlot
    private let inputAddress: UInt16
    private let outputAddress: UInt16
    public let input: GuestEndpoint
    public let output: GuestEndpoint
    private let commandBlock: GuestAddress
    private let statusBlock: GuestAddress
    private let data: GuestAddress
    private var tag: UInt32 = 0

    private var memory: GuestRAM { driver.memory }

    /// Waits for a new connection, and addresses and configures the stick.
    ///
    /// - Parameter ring: the segment sizes of its bulk rings, in TRBs.
    public init(_ driver: GuestDriver, ring: [Int] = [64]) throws {
        self.driver = driver
        slot = try driver.addressNewDevice()
        let configuration = try slot.control(
            SetupPacket(requestType: 0x80, request: 6, value: 0x200, index: 0, length: 255))
        let wanted = try Self.bulkEndpoints(configuration, ring: ring)
        inputAddress = UInt16(wanted[0].address.rawValue)
        outputAddress = UInt16(wanted[1].address.rawValue)
        let endpoints = try slot.configure(wanted)
        try slot.setConfiguration(UInt16(configuration[5]))
        input = endpoints[0]
        output = endpoints[1]
        commandBlock = driver.memory.allocate(31)
        statusBlock = driver.memory.allocate(13)
        data = driver.memory.allocate(Self.blocksPerCommand * Self.blockSize, alignment: 4096)
    }

    /// The first bulk IN and the first bulk OUT endpoint of a configuration descriptor.
    public static func bulkEndpoints(
        _ bytes: [UInt8], ring: [Int]
    ) throws -> [GuestEndpointConfiguration] {
        let endpoints = ConfigurationDescriptor.all(in: bytes).flatMap(\.interfaces)
            .flatMap(\.endpoints).filter { $0.transferType == .bulk }
        func first(_ direction: Direction) -> GuestEndpointConfiguration? {
            guard let descriptor = endpoints.first(where: { $0.address.direction == direction })
            else { return nil }
            let number = descriptor.address.number
            var endpoint: GuestEndpointConfiguration =
                direction == .in
                ? .bulkIn(number, segments: ring) : .bulkOut(number, segments: ring)
            endpoint.maxPacketSize = Int(descriptor.maxPacketSize)
            return endpoint
        }
        guard let input = first(.in), let output = first(.out) else {
            throw Failure(description: "no two bulk endpoints")
        }
        return [input, output]
    }

    // MARK: - Blocks

    /// READ CAPACITY (10): the number of blocks.
    public func blockCount() throws -> Int {
        try waitUntilReady()
        try execute([0x25] + zeroes(9), input, count: 8)
        return Int(memory.bytes(at: data, count: 4).bigEndian(UInt32.self, at: 0)) + 1
    }

    /// The contents of the whole stick.
    public func readAll() throws -> [UInt8] {
        try read(block: 0, count: try blockCount())
    }

    /// Reads blocks with READ (10), ``blocksPerCommand`` at a time.
    public func read(block: Int, count: Int) throws -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count * Self.blockSize)
        for start in stride(from: block, to: block + count, by: Self.blocksPerCommand) {
            let blocks = min(Self.blocksPerCommand, block + count - start)
            try execute(Self.transferCommand(0x28, start, blocks), input, count: blocks * 512)
            bytes += memory.bytes(at: data, count: blocks * Self.blockSize)
        }
        return bytes
    }

    /// Writes blocks with WRITE (10), ``blocksPerCommand`` at a time.
    public func write(_ bytes: [UInt8], block: Int) throws {
        precondition(bytes.count % Self.blockSize == 0, "\(bytes.count) bytes are no blocks")
        let count = bytes.count / Self.blockSize
        for start in stride(from: 0, to: count, by: Self.blocksPerCommand) {
            let blocks = min(Self.blocksPerCommand, count - start)
            let part = bytes[start * Self.blockSize..<(start + blocks) * Self.blockSize]
            memory.write(Array(part), at: data)
            try execute(
                Self.transferCommand(0x2a, block + start, blocks), output, count: part.count)
        }
    }

    /// SYNCHRONIZE CACHE (10).
    public func synchronize() throws { try execute([0x35] + zeroes(9), nil, count: 0) }

    /// UNMAP. The blocks read as zeroes afterwards.
    public func discard(block: Int, count: Int) throws {
        let extent =
            zeroes(4) + Array(bigEndian: UInt32(block)) + Array(bigEndian: UInt32(count))
            + zeroes(4)
        let list = [0, UInt8(6 + extent.count), 0, UInt8(extent.count)] + zeroes(4) + extent
        memory.write(list, at: data)
        try execute(
            [0x42] + zeroes(6) + [0, UInt8(list.count), 0], output, count: list.count)
    }

    /// READ (10) or WRITE (10).
    static func transferCommand(_ code: UInt8, _ block: Int, _ count: Int) -> [UInt8] {
        [code, 0] + (0..<4).map { UInt8(truncatingIfNeeded: block >> (24 - $0 * 8)) }
            + [0, UInt8(truncatingIfNeeded: count >> 8), UInt8(truncatingIfNeeded: count), 0]
    }

    // MARK: - Bulk-Only Transport

    /// Sends TEST UNIT READY until no unit attention condition is left.
    private func waitUntilReady() throws {
        for _ in 0..<5 {
            if try status(of: zeroes(6), nil, count: 0) == 0 { return }
            _ = try status(of: [3, 0, 0, 0, 18, 0], input, count: 18)
        }
        throw Failure(description: "the stick is not ready")
    }

    private func execute(_ command: [UInt8], _ endpoint: GuestEndpoint?, count: Int) throws {
        let status = try status(of: command, endpoint, count: count)
        guard status == 0 else {
            throw Failure(description: "command \(command) ended with status \(status)")
        }
    }

    /// Executes a command, with CBW, data and CSW, and returns its status.
    private func status(
        of command: [UInt8], _ endpoint: GuestEndpoint?, count: Int
    ) throws -> UInt8 {
        tag += 1
        let flags: UInt8 = endpoint === input ? 0x80 : 0
        let header =
            Array(littleEndian: 0x4342_5355 as UInt32) + Array(littleEndian: tag)
            + Array(littleEndian: UInt32(count))
        let block = header + [flags, 0, UInt8(command.count)] + command
        memory.write(block + zeroes(31 - block.count), at: commandBlock)
        _ = try move(output, commandBlock, 31)
        if let endpoint, try move(endpoint, data, count) == nil { try recover(endpoint) }
        guard try move(input, statusBlock, 13) == 13,
            memory.bytes(at: statusBlock, count: 8) == Array(littleEndian: 0x5342_5355 as UInt32)
                + Array(littleEndian: tag)
        else { throw Failure(description: "no status for command \(command)") }
        return memory.load(UInt8.self, at: statusBlock + 12)
    }

    /// Clears a halt in the controller and in the device (Bulk-Only Transport 6.7).
    private func recover(_ endpoint: GuestEndpoint) throws {
        try endpoint.reset()
        try endpoint.setDequeuePointer()
        let address: UInt16 = endpoint === input ? inputAddress : outputAddress
        try slot.control(
            SetupPacket(requestType: 2, request: 1, value: 0, index: address, length: 0))
    }

    /// Executes one transfer of a command and returns the number of bytes moved; `nil` after a
    /// stall.
    private func move(
        _ endpoint: GuestEndpoint, _ buffer: GuestAddress, _ count: Int
    ) throws -> Int? {
        let trbs = endpoint.trbs(buffer, count)
        let addresses = endpoint.submit(trbs)
        let event = try driver.wait("end of a transfer of \(count) bytes") {
            $0.isTransfer && addresses.contains($0.pointer)
        }
        if event.code == .stall { return nil }
        guard event.code == .success || event.code == .shortPacket,
            let moved = GuestEndpoint.transferred(event, trbs: trbs, addresses: addresses)
        else { throw GuestError.unexpected(event, "transfer of \(count) bytes") }
        return moved
    }
}

private func zeroes(_ count: Int) -> [UInt8] { Array(repeating: 0, count: count) }
