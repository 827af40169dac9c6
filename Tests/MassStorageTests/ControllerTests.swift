// SPDX-License-Identifier: Apache-2.0

import BackendKit
import DMA
import GuestKit
import Logging
import Platform
import TestKit
import Testing
import USB

@testable import MassStorage

/// The mass storage device behind the real controller, with a guest's driver.
@Suite struct ControllerTests {
    private func stick(
        _ image: any DiskImage, on guest: Guest, speed: USBSpeed = .superSpeed,
        offersUAS: Bool = false
    ) throws -> MassStorageDevice {
        let device = MassStorageDevice(
            image: image,
            unit: LogicalUnit(
                identity: InquiryIdentity(serialNumber: "0123456789AB"),
                blockCount: image.byteCount / 512, isReadOnly: image.isReadOnly, writeCache: true),
            speed: speed, offersUAS: offersUAS, summary: "test",
            worker: try Worker(name: "t", loop: guest.machine.loop), logger: .silent)
        let fake = image as? FakeImage
        guest.machine.isWorkerBusy = { [weak device] in
            fake?.isHanging != true && device?.isIdle == false
        }
        return device
    }

    @Test(
        "an image is read, written and flushed through the controller",
        arguments: [SimulatedMachine.MemoryKind.local, .remote], [USBSpeed.high, .superSpeed])
    func roundTrip(memory: SimulatedMachine.MemoryKind, speed: USBSpeed) throws {
        let file = try TemporaryFile(size: 1 << 20) { UInt8(truncatingIfNeeded: $0 / 3) }
        let guest = try Guest(memory)
        let image = try FileImage(path: file.path, readOnly: false, cache: .writeback)
        try guest.machine.attach(stick(image, on: guest, speed: speed))
        let driver = try GuestStick(guest.driver)
        #expect(try driver.readAll() == file.contents)
        let data = (0..<100_352).map { UInt8(truncatingIfNeeded: $0 &* 11) }
        try driver.write(data, block: 77)
        try driver.synchronize()
        #expect(Array(file.contents[77 * 512..<77 * 512 + data.count]) == data)
        #expect(try driver.read(block: 77, count: 196) == data)
        #expect(!guest.hasFailed)
    }

    @Test(
        "an image that would block is read and written through the controller",
        arguments: [FakeImage.NonblockingAccess.wouldBlock, .notSupported, .servedUpTo(777)])
    func slowMedium(nonblocking: FakeImage.NonblockingAccess) throws {
        let guest = try Guest()
        let image = FakeImage(byteCount: 1 << 20)
        image.set { $0.nonblocking = nonblocking }
        try guest.machine.attach(stick(image, on: guest))
        let driver = try GuestStick(guest.driver)
        let data = (0..<65536).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        try driver.write(data, block: 3)
        try driver.synchronize()
        #expect(image.flushCount == 1)
        #expect(image.bytes(at: 3 * 512, count: data.count) == data)
        #expect(try driver.read(block: 3, count: 128) == data)
    }

    /// INQUIRY with a larger data stage than the device has: a short packet, a halt instead of the
    /// CSW, and Linux's recovery.
    @Test func `a guest recovers from the halt after short data`() throws {
        let guest = try Guest()
        let slot = try guest.plug(stick(FakeImage(byteCount: 1 << 20), on: guest))
        var input = GuestEndpointConfiguration.bulkIn(1)
        var output = GuestEndpointConfiguration.bulkOut(2)
        input.maxPacketSize = 1024
        output.maxPacketSize = 1024
        let endpoints = try slot.configure(input, output)
        try slot.control(
            SetupPacket(requestType: 0, request: 9, value: 1, index: 0, length: 0))
        let command: [UInt8] = [
            0x55, 0x53, 0x42, 0x43, 9, 0, 0, 0, 96, 0, 0, 0, 0x80, 0, 6, 0x12, 0, 0, 0, 96, 0,
        ]
        #expect(try endpoints[1].send(command + [UInt8](repeating: 0, count: 10)) == 31)
        #expect(try endpoints[0].receive(96).count == 64)
        let buffer = guest.memory.allocate(13)
        endpoints[0].submit(endpoints[0].trbs(buffer, 13))
        #expect(try endpoints[0].event().code == .stall)
        #expect(endpoints[0].context.state == .halted)
        try endpoints[0].reset()
        try endpoints[0].setDequeuePointer()
        // The device's endpoint stays halted until CLEAR_FEATURE.
        endpoints[0].submit(endpoints[0].trbs(buffer, 13))
        #expect(try endpoints[0].event().code == .stall)
        try endpoints[0].reset()
        try endpoints[0].setDequeuePointer()
        try slot.control(
            SetupPacket(requestType: 2, request: 1, value: 0, index: 0x81, length: 0))
        #expect(
            try endpoints[0].receive(13) == [0x55, 0x53, 0x42, 0x53, 9, 0, 0, 0, 32, 0, 0, 0, 0])
    }

    @Test func `controller and device work after a detach while the worker reads`()
        throws
    {
        let guest = try Guest()
        let image = FakeImage(byteCount: 1 << 20)
        let device = try stick(image, on: guest)
        try guest.machine.attach(device)
        let driver = try GuestStick(guest.driver)
        image.set { $0.nonblocking = .wouldBlock }
        image.shutGate()
        #expect(throws: (any Error).self) {
            guest.machine.onTurn = { turn in
                guard !device.isIdle else { return }
                guest.machine.onTurn = nil
                guest.machine.detach(device)
            }
            _ = try driver.read(block: 0, count: 8)
        }
        image.openGate()
        guest.machine.pass(.seconds(1))
        #expect(guest.answersCommands)
        try guest.machine.attach(device)
        let again = try GuestStick(guest.driver)
        #expect(try again.read(block: 0, count: 8).count == 4096)
    }

    @Test func `a UAS command that fails does not disturb a slow read on another stream`()
        throws
    {
        let guest = try Guest()
        let image = FakeImage(byteCount: 1 << 20)
        let data = (0..<4096).map { UInt8(truncatingIfNeeded: $0 / 7) }
        image.fill(at: 0, data)
        image.set { $0.nonblocking = .wouldBlock }
        let device = try stick(image, on: guest, offersUAS: true)
        let slot = try guest.plug(device)
        var pipe = GuestEndpointConfiguration.bulkOut(4)
        pipe.maxPacketSize = 1024
        let command = try slot.configure(pipe)[0]
        let status = try GuestStreams(
            slot, MassStorageDescriptors.statusEndpoint, maxPrimaryStreams: 2)
        let stream = try GuestStreams(slot, MassStorageDescriptors.inEndpoint, maxPrimaryStreams: 2)
        let setting = UInt16(MassStorageDescriptors.uasSetting)
        for (type, request, value) in [(0, 9, 1), (1, 11, setting)] as [(UInt8, UInt8, UInt16)] {
            try slot.control(
                SetupPacket(
                    requestType: type, request: request, value: value, index: 0, length: 0))
        }
        let buffer = guest.memory.allocate(0x10000, alignment: 65536)
        func submit(_ tag: Int, _ block: [UInt8], _ count: Int) throws {
            let flags: GuestTRB.Flags = [.interruptOnCompletion, .interruptOnShortPacket]
            status.submit(tag, [.normal(buffer + 0x8000 + tag * 256, 112, flags)])
            stream.submit(tag, [.normal(buffer + tag * 4096, count, flags)])
            _ = try command.send(UASHost.command(block, UInt16(tag)))
        }

        image.shutGate()
        try submit(1, [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0], 4096)
        try submit(2, [0x4d, 0, 0, 0, 0, 0, 0, 0, 64, 0], 64)
        image.openGate()
        // The data transfer of the failed command completes without bytes before its status.
        #expect(try stream.event().length == 0)
        #expect(try stream.event().length == 64)
        #expect(try status.event().code == .shortPacket)
        #expect(try status.event().code == .shortPacket)
        #expect(guest.memory.bytes(at: buffer + 4096, count: 4096) == data)
        #expect(!guest.hasFailed)
    }
}
