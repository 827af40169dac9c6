// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Logging
import Platform
import Testing
import USB
import XHCI

@testable import MassStorage

/// A disk that hangs behind the real controller: every event that ends a transfer is answered at
/// once, and the guest reuses the transfer's memory before the disk has finished.
struct HungDiskTests {
    /// The event that ends the transfer.
    enum End: CaseIterable {
        case stopEndpoint, disableSlot, hostControllerReset, deviceReset, unmap, detach
        case clientDisconnect
    }

    enum Transport: CaseIterable {
        case bulkOnly, uas
    }

    private static let size = 8192
    private static let old = [UInt8](repeating: 0x11, count: size)
    private static let new = [UInt8](repeating: 0x22, count: size)
    private static let onDisk = (0..<size).map { UInt8(truncatingIfNeeded: $0 / 3) }

    /// A guest with a command in progress during whose data stage the disk hangs.
    private final class Bench {
        let guest: Guest
        let image = FakeImage(byteCount: 1 << 20)
        let device: MassStorageDevice
        let slot: GuestSlot
        /// The endpoint or stream of the data.
        let data: GuestEndpoint
        let buffer: GuestAddress
        var machine: SimulatedMachine { guest.machine }
        var driver: GuestDriver { guest.driver }

        init(
            _ transport: Transport, _ memory: SimulatedMachine.MemoryKind, _ direction: Direction
        ) throws {
            guest = try Guest(memory)
            image.fill(at: 0, onDisk)
            image.set { $0.nonblocking = .wouldBlock }
            device = MassStorageDevice(
                image: image,
                unit: LogicalUnit(
                    identity: InquiryIdentity(serialNumber: "0123456789AB"),
                    blockCount: image.byteCount / 512, isReadOnly: false, writeCache: true),
                speed: .superSpeed, offersUAS: transport == .uas, summary: "test",
                worker: try Worker(name: "t", loop: guest.machine.loop),
                logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
            slot = try guest.plug(device)
            buffer = guest.memory.allocate(size, alignment: 65536)
            guest.memory.write(old, at: buffer)
            let block: [UInt8] = [
                direction == .in ? 0x28 : 0x2a, 0, 0, 0, 0, 0, 0, 0, UInt8(size / 512), 0,
            ]
            switch transport {
            case .bulkOnly: data = try Self.startBulkOnly(slot, block, direction)
            case .uas: data = try Self.startUAS(slot, block, direction)
            }
            image.shutGate()
            data.submit([.normal(buffer, size, .interruptOnCompletion)])
            machine.turn()
            machine.turn()
            try #require(!device.isIdle, "the worker has the data")
        }

        deinit { image.openGate() }

        private static func bulk(_ address: EndpointAddress) -> GuestEndpointConfiguration {
            var pipe: GuestEndpointConfiguration =
                address.direction == .in ? .bulkIn(address.number) : .bulkOut(address.number)
            pipe.maxPacketSize = 1024
            return pipe
        }

        private static func startBulkOnly(
            _ slot: GuestSlot, _ block: [UInt8], _ direction: Direction
        ) throws -> GuestEndpoint {
            let endpoints = try slot.configure(
                bulk(MassStorageDescriptors.inEndpoint), bulk(MassStorageDescriptors.outEndpoint))
            try slot.setConfiguration(1)
            let wrapper: [UInt8] =
                [0x55, 0x53, 0x42, 0x43, 1, 0, 0, 0]
                + withUnsafeBytes(of: UInt32(size).littleEndian) { Array($0) }
                + [direction == .in ? 0x80 : 0, 0, UInt8(block.count)] + block
            _ = try endpoints[1].send(wrapper + [UInt8](repeating: 0, count: 31 - wrapper.count))
            return endpoints[direction == .in ? 0 : 1]
        }

        private static func startUAS(
            _ slot: GuestSlot, _ block: [UInt8], _ direction: Direction
        ) throws -> GuestEndpoint {
            let command = try slot.configure(bulk(MassStorageDescriptors.commandEndpoint))[0]
            let streams = try GuestStreams(
                slot,
                direction == .in
                    ? MassStorageDescriptors.inEndpoint : MassStorageDescriptors.outEndpoint,
                maxPrimaryStreams: 2)
            try slot.setConfiguration(1)
            try slot.control(
                SetupPacket(
                    requestType: 1, request: 11, value: UInt16(MassStorageDescriptors.uasSetting),
                    index: 0, length: 0))
            _ = try command.send(UASHost.command(block, 1))
            return try #require(streams.endpoint(1))
        }

        /// Ends the transfer, and checks that no time passes until the answer.
        func end(_ end: End) throws {
            let before = machine.now
            switch end {
            case .stopEndpoint: #expect(try data.stop().code == .success)
            case .disableSlot: try driver.succeed(.command(.disableSlot, slot: slot.number))
            case .hostControllerReset:
                machine.write32(GuestDriver.Command.reset, at: guest.registers.command)
                machine.turn()
                #expect(
                    machine.read32(guest.registers.command) & GuestDriver.Command.reset == 0)
            case .deviceReset: machine.controller.reset()
            case .unmap:
                let memory = guest.memory
                let region = try machine.bus.unmap(memory.base, count: UInt64(memory.size))
                machine.controller.endAccess(to: region)
            case .detach:
                machine.detach(device)
                machine.turn()
            case .clientDisconnect:
                machine.controller.reset()
                _ = machine.bus.unmapAll()
            }
            #expect(machine.now == before)
            #expect(!device.isIdle, "the worker still has the data")
        }

        /// Opens the gate of the disk, and waits for the worker.
        func finishDisk() {
            image.openGate()
            _ = machine.advance(limit: .seconds(1)) { device.isIdle }
            #expect(device.isIdle)
            machine.pass(.milliseconds(1))
        }
    }

    @Test(arguments: Transport.allCases, SimulatedMachine.MemoryKind.allCases)
    func `a read that hangs does not write into memory that the guest has reused`(
        transport: Transport, memory: SimulatedMachine.MemoryKind
    ) throws {
        for end in End.allCases {
            let bench = try Bench(transport, memory, .in)
            try bench.end(end)
            bench.guest.memory.write(Self.new, at: bench.buffer)
            bench.finishDisk()
            #expect(
                bench.guest.memory.bytes(at: bench.buffer, count: Self.size) == Self.new,
                "\(end)")
        }
    }

    @Test(arguments: Transport.allCases, SimulatedMachine.MemoryKind.allCases)
    func `a write that hangs writes the bytes of its submission, or nothing`(
        transport: Transport, memory: SimulatedMachine.MemoryKind
    ) throws {
        for end in End.allCases {
            let bench = try Bench(transport, memory, .out)
            try bench.end(end)
            bench.guest.memory.write(Self.new, at: bench.buffer)
            bench.finishDisk()
            let written = bench.image.bytes(at: 0, count: Self.size)
            #expect(written == Self.old || written == Self.onDisk, "\(end)")
        }
    }

    @Test(arguments: Transport.allCases, [Direction.in, .out])
    func `a stopped transfer resumes with the next bytes`(
        transport: Transport, direction: Direction
    ) throws {
        let bench = try Bench(transport, .local, direction)
        try bench.end(.stopEndpoint)
        bench.finishDisk()
        _ = bench.driver.takeAll()
        bench.data.ringDoorbell()
        _ = bench.machine.advance(limit: .seconds(5)) { bench.device.isIdle }
        bench.machine.pass(.milliseconds(10))
        #expect(
            bench.image.bytes(at: 0, count: Self.size)
                == (direction == .in ? Self.onDisk : Self.old))
        if direction == .in {
            #expect(
                bench.guest.memory.bytes(at: bench.buffer, count: Self.size) == Self.onDisk)
        }
    }
}
