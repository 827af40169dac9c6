// SPDX-License-Identifier: Apache-2.0

internal import Foundation
internal import Platform

/// A client that sends and reads the same messages as Cloud Hypervisor with rust-vmm's vfio-user
/// client.
///
/// That client reads replies of the size that it expects and ignores error flags and message IDs.
/// Every deviation that it would fail on is a ``WireClient/Failure`` here.
public final class CloudHypervisorClient: VMMClient {
    /// The version data, byte for byte, without the NUL at its end.
    public static let versionData = """
        {"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}
        """

    /// Memory of the virtual machine, mapped at the start.
    public struct Memory {
        public let descriptor: CInt
        public let offset: UInt64
        public let address: UInt64
        public let size: UInt64

        public init(descriptor: CInt, offset: UInt64 = 0, address: UInt64, size: UInt64) {
            self.descriptor = descriptor
            self.offset = offset
            self.address = address
            self.size = size
        }
    }

    /// A base address register, as found by sizing.
    public struct BaseAddress: Equatable, Sendable {
        public let index: Int
        public let size: UInt64
        public let is64Bit: Bool
    }

    public private(set) var baseAddresses: [BaseAddress] = []
    private let memory: [Memory]
    private let resetsFirst: Bool

    /// - Parameter resetsFirst: whether DEVICE_RESET is the first device request, as in a version
    ///   of the client when the server reports that the device can be reset.
    public init(wire: WireClient, memory: [Memory], resetsFirst: Bool = false) {
        self.memory = memory
        self.resetsFirst = resetsFirst
        super.init(wire: wire)
    }

    // MARK: - Start

    public override func start() throws {
        try negotiate()
        try describe()
        if resetsFirst { try reset() }
        try walkCapabilities()
        for part in memory {
            try mapMemory(
                part.descriptor, offset: part.offset, at: part.address, size: part.size)
        }
        try sizeBaseAddresses()
        // Each region is described a second time, for mappings that it might offer.
        for index in regions.indices { _ = try regionInfo(UInt32(index)) }
    }

    private func negotiate() throws {
        try wire.send(
            WireMessage(
                id: wire.makeID(), command: Command.version,
                payload: WireMessage.version(
                    minor: 1, json: Array(Self.versionData.utf8) + [0])))
        let fixed = try wire.receive(exactly: 20)
        let size = Int(fixed.integer(UInt32.self, at: 4))
        // The client drops the last byte without a check and parses the rest.
        guard size > 21 else { throw Failure("version data of \(size - 20) bytes") }
        let data = try wire.receive(exactly: size - 20)
        let parsed = try JSONSerialization.jsonObject(with: Data(data.dropLast()))
        guard let object = parsed as? [String: Any],
            let capabilities = object["capabilities"] as? [String: Any]
        else { throw Failure("no capabilities in the version data") }
        if let migration = capabilities["migration"] as? [String: Any], migration["pgsize"] == nil {
            throw Failure("migration without a page size")
        }
    }

    private func describe() throws {
        let reply = try exchange(Command.getInfo, WireMessage.getInfo(argsz: 32), size: 32)
        let count = reply.integer(UInt32.self, at: 24)
        interruptTypes = Int(reply.integer(UInt32.self, at: 28))
        regions = try (0..<count).map { try regionInfo($0) }
    }

    /// The reply is read with one call, which must return all of it.
    private func regionInfo(_ index: UInt32) throws -> RegionInfo {
        try wire.send(
            WireMessage(
                id: wire.makeID(), command: Command.getRegionInfo,
                payload: WireMessage.regionInfo(index: index)))
        let reply = try wire.receiveOnce(upTo: 48)
        guard reply.count == 48 else {
            throw Failure("region \(index) is described in \(reply.count) bytes")
        }
        guard reply.integer(UInt32.self, at: 16) <= 32 else {
            throw Failure("a region with capabilities")
        }
        return RegionInfo(
            flags: reply.integer(at: 20), size: reply.integer(at: 32))
    }

    /// Reads the capability list byte by byte, and the description of each interrupt type on the
    /// way.
    private func walkCapabilities() throws {
        var offset = UInt64(try readConfiguration(0x34, as: UInt8.self))
        var visited = 0
        while offset != 0, visited < 48 {
            visited += 1
            let id = try readConfiguration(offset, as: UInt8.self)
            switch id {
            case 0x05:
                if try interruptCount(IRQ.msi) > 0 {
                    _ = try readConfiguration(offset + 2, as: UInt16.self)
                }
            case 0x11:
                if try interruptCount(IRQ.msix) > 0 {
                    recordMSIX(
                        at: offset, control: try readConfiguration(offset + 2),
                        table: try readConfiguration(offset + 4),
                        pending: try readConfiguration(offset + 8))
                }
            default: break
            }
            offset = UInt64(try readConfiguration(offset + 1, as: UInt8.self))
        }
        if try interruptCount(IRQ.intx) > 0 {
            let event = try EventFD()
            _ = try exchange(
                Command.setIRQs,
                WireMessage.setIRQs(
                    flags: IRQSet.dataEventFD | IRQSet.trigger, index: IRQ.intx, start: 0,
                    count: 1), size: 16, descriptors: [event.descriptor])
        }
    }

    private func interruptCount(_ index: UInt32) throws -> UInt32 {
        try exchange(Command.getIRQInfo, WireMessage.irqInfo(index: index), size: 32)
            .integer(at: 28)
    }

    /// Sizes the base address registers by the configuration space alone, not by region
    /// descriptions.
    private func sizeBaseAddresses() throws {
        var index = 0
        while index < 6 {
            let offset = 0x10 + UInt64(index) * 4
            let before: UInt32 = try readConfiguration(offset)
            try writeConfiguration(offset, UInt32.max)
            let low: UInt32 = try readConfiguration(offset)
            guard low & ~0xf != 0 else {
                index += 1
                continue
            }
            let is64Bit = before & 1 == 0 && before & 6 == 4
            var mask = UInt64(low & (before & 1 == 1 ? ~3 : ~0xf)) | 0xffff_ffff_0000_0000
            if is64Bit {
                try writeConfiguration(offset + 4, UInt32.max)
                let high: UInt32 = try readConfiguration(offset + 4)
                mask = mask & 0xffff_ffff | UInt64(high) << 32
            }
            baseAddresses.append(BaseAddress(index: index, size: ~mask &+ 1, is64Bit: is64Bit))
            index += is64Bit ? 2 : 1
        }
        try writeConfiguration(0x30, UInt32.max)
        guard try readConfiguration(0x30, as: UInt32.self) == 0 else {
            throw Failure("the absent expansion ROM has a size")
        }
    }

    // MARK: - Running

    public override func readRegion(
        _ region: UInt32, at offset: UInt64, count: Int
    ) throws -> [UInt8] {
        let reply = try exchange(
            Command.regionRead,
            WireMessage.region(region, offset: offset, count: UInt32(count)), size: 32 + count)
        return Array(reply[32...])
    }

    public override func writeRegion(_ region: UInt32, at offset: UInt64, _ bytes: [UInt8]) throws {
        _ = try exchange(
            Command.regionWrite,
            WireMessage.region(
                region, offset: offset, count: UInt32(bytes.count), data: bytes), size: 32)
    }

    public func reset() throws { _ = try exchange(Command.reset, [], size: 16) }

    /// Removes the device from the running machine.
    public func eject() throws {
        for part in memory {
            _ = try exchange(
                Command.dmaUnmap, WireMessage.dmaUnmap(address: part.address, size: part.size),
                size: 40)
        }
        _ = try exchange(
            Command.setIRQs,
            WireMessage.setIRQs(
                flags: IRQSet.dataNone | IRQSet.trigger, index: IRQ.msix, start: 0, count: 0),
            size: 16)
        wire.shutdown()
        wire.close()
    }

    /// Sends a request and reads a reply of exactly `size` bytes without a look at its header.
    private func exchange(
        _ command: UInt16, _ payload: [UInt8], size: Int, descriptors: [CInt] = []
    ) throws -> [UInt8] {
        try wire.send(
            WireMessage(id: wire.makeID(), command: command, payload: payload),
            descriptors: descriptors)
        let reply = try wire.receive(exactly: size)
        // The client would not notice, and would misread the next reply.
        guard reply.integer(UInt32.self, at: 4) == size else {
            throw Failure(
                "the reply to command \(command) has \(reply.integer(UInt32.self, at: 4)) bytes, not \(size)"
            )
        }
        return reply
    }
}
