// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

@testable import HostUSB

/// How transfers, operations and resets are put in order, with a scripted kernel.
struct HostDeviceTests {
    let handle = ScriptedHandle()
    let port = RecordingPort()
    let loop = ManualLoop()
    let log: LogRecorder.Lines
    let device: HostDevice

    static let bulkIn = EndpointAddress(1, .in)
    static let bulkOut = EndpointAddress(1, .out)
    static let interruptIn = EndpointAddress(2, .in)

    init() {
        let (logger, lines) = LogRecorder.make()
        log = lines
        device = HostDevice(
            handle, speed: .high, summary: "host 1:4", loop: loop, logger: logger)
        device.attach(to: port)
    }

    func bulk(_ id: UInt64, _ endpoint: EndpointAddress, count: Int = 512) {
        device.submit(
            Transfer(
                id: .init(rawValue: id), endpoint: endpoint, kind: .bulk(stream: 0),
                buffer: Bytes([UInt8](repeating: 0, count: count)).buffer))
    }

    func control(_ id: UInt64, _ setup: SetupPacket) {
        device.submit(
            Transfer(
                id: .init(rawValue: id), endpoint: .control, kind: .control(setup),
                buffer: Bytes([UInt8](repeating: 0, count: Int(setup.length))).buffer))
    }

    // MARK: - Transfers

    @Test func `what was cancelled is fetched from the kernel before anything else happens`() {
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkIn)
        device.cancel(.init(rawValue: 2))
        #expect(handle.reaps == 1)
        device.reset()
        #expect(handle.reaps == 2)
        device.detached()
        #expect(handle.reaps == 3)
        #expect(handle.cancelled == [2, 1])
    }

    @Test func `several transfers of an endpoint are in flight and end in order`() {
        for id in 1...5 as ClosedRange<UInt64> { bulk(id, Self.bulkIn) }
        #expect(handle.inFlightIDs == [1, 2, 3, 4, 5])
        handle.end(1, transferred: 512)
        handle.end(2, transferred: 13)
        #expect(port.take() == ["1 completed 512", "2 completed 13"])
        #expect(handle.inFlightIDs == [3, 4, 5])
    }

    @Test func `a stall reaches the guest and stops what is behind it`() {
        for id in 1...3 as ClosedRange<UInt64> { bulk(id, Self.bulkIn) }
        bulk(4, Self.bulkOut)
        handle.end(1, .stalled)
        #expect(handle.cancelled == [2, 3])
        handle.end(2, .cancelled)
        handle.end(3, .cancelled)
        #expect(port.take() == ["1 stalled 0", "2 cancelled 0", "3 cancelled 0"])
        #expect(handle.inFlightIDs == [4])
    }

    @Test(arguments: [Transfer.Status.babbled, .failed])
    func `an error stops what is behind it`(status: Transfer.Status) {
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkIn)
        handle.end(1, status, transferred: 512)
        #expect(handle.cancelled == [2])
        #expect(port.take() == ["1 \(status) 512"])
    }

    @Test func `a stalled control transfer stops nothing`() {
        control(1, .getDeviceDescriptor)
        control(2, .getDeviceDescriptor)
        handle.end(1, .stalled)
        #expect(handle.cancelled == [])
        #expect(port.take() == ["1 stalled 0"])
    }

    @Test func `what the kernel takes back by itself has failed`() {
        bulk(1, Self.bulkIn)
        handle.end(1, .cancelled)
        #expect(port.take() == ["1 failed 0"])
    }

    @Test func `a cancelled transfer ends as what it had become`() {
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkIn)
        device.cancel(.init(rawValue: 1))
        device.cancel(.init(rawValue: 2))
        #expect(handle.cancelled == [1, 2])
        #expect(port.take() == [])
        handle.end(1, .completed, transferred: 512)
        handle.end(2, .cancelled, transferred: 64)
        #expect(port.take() == ["1 completed 512", "2 cancelled 64"])
    }

    @Test func `cancelling an unknown transfer does nothing`() {
        bulk(1, Self.bulkIn)
        device.cancel(.init(rawValue: 99))
        #expect(handle.cancelled == [])
        #expect(port.take() == [])
    }

    @Test
    func `what the kernel refuses is a stall of the control endpoint and a failure elsewhere`() {
        handle.answers = [.refused, .refused]
        control(1, .getDeviceDescriptor)
        bulk(2, Self.bulkIn)
        #expect(port.take() == ["1 stalled 0", "2 failed 0"])
    }

    @Test func `a refused transfer is answered after those before it`() {
        bulk(1, Self.bulkIn)
        handle.answers = [.refused]
        bulk(2, Self.bulkIn)
        #expect(port.take() == [])
        handle.end(1, transferred: 512)
        #expect(port.take() == ["1 completed 512", "2 failed 0"])
    }

    // MARK: - Isochronous transfers

    func isochronous(_ id: UInt64) {
        device.submit(
            Transfer(
                id: .init(rawValue: id), endpoint: EndpointAddress(3, .in), kind: .isochronous,
                buffer: Bytes([UInt8](repeating: 0, count: 192)).buffer))
    }

    @Test func `the host's bus keeps the time`() {
        #expect(device.keepsIsochronousTime)
    }

    @Test func `a lost packet of an isochronous endpoint stops nothing`() {
        for id in 1...3 as ClosedRange<UInt64> { isochronous(id) }
        handle.end(1, transferred: 192)
        handle.end(2, .failed)
        handle.end(3, transferred: 10)
        #expect(handle.cancelled == [])
        #expect(port.take() == ["1 completed 192", "2 failed 0", "3 completed 10"])
    }

    @Test func `who shares a batch with a cancelled transfer is cancelled too`() {
        for id in 1...2 as ClosedRange<UInt64> { isochronous(id) }
        device.cancel(.init(rawValue: 2))
        handle.end(1, .cancelled)
        handle.end(2, .cancelled)
        #expect(port.take() == ["1 cancelled 0", "2 cancelled 0"])
    }

    @Test func `the operator hears what the handle notes`() {
        device.noted("no memory")
        #expect(log.all == ["warning: host 1:4: no memory"])
    }

    // MARK: - Streams

    @Test func `a stream's transfers are handed over`() {
        device.submit(
            Transfer(
                id: .init(rawValue: 1), endpoint: Self.bulkIn, kind: .bulk(stream: 7),
                buffer: Bytes([0]).buffer))
        #expect(handle.inFlightIDs == [1])
    }

    @Test func `an endpoint's transfers wait until it has its streams`() {
        device.setStreams(16, for: Self.bulkIn)
        #expect(handle.operations == [.allocateStreams(Self.bulkIn, count: 16)])
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkOut)
        #expect(handle.inFlightIDs == [2])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [2, 1])
        device.setStreams(0, for: Self.bulkIn)
        #expect(handle.operations.last == .freeStreams(Self.bulkIn))
        handle.endOperation(.done)
        #expect(port.take() == [])
    }

    @Test func `streams of several endpoints change one after the other`() {
        device.setStreams(16, for: Self.bulkIn)
        device.setStreams(16, for: Self.bulkOut)
        device.setStreams(8, for: Self.bulkOut)
        bulk(1, Self.bulkOut)
        handle.endOperation(.refused, warnings: ["none"])
        #expect(
            handle.operations == [
                .allocateStreams(Self.bulkIn, count: 16), .allocateStreams(Self.bulkOut, count: 8),
            ])
        #expect(handle.inFlightIDs == [])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [1])
        #expect(log.all == ["warning: host 1:4: none"])
    }

    // MARK: - Operations

    @Test func `a configuration is set by the kernel while all transfers wait`() {
        control(1, .setConfiguration(1))
        #expect(handle.operations == [.setConfiguration(1)])
        control(2, .getDeviceDescriptor)
        bulk(3, Self.bulkIn)
        bulk(4, Self.bulkIn)
        #expect(handle.inFlightIDs == [])
        #expect(port.take() == [])
        handle.endOperation(.done)
        #expect(port.take() == ["1 completed 0"])
        #expect(handle.inFlightIDs == [2, 3, 4])
    }

    @Test func `an interface's setting is set by the kernel`() {
        control(1, .setInterface(2, 3))
        #expect(handle.operations == [.setInterface(2, setting: 3)])
        handle.endOperation(.refused)
        #expect(port.take() == ["1 stalled 0"])
    }

    @Test func `clearing a halt holds that endpoint and the control endpoint only`() {
        control(1, .clearHalt(0x81))
        #expect(handle.operations == [.clearHalt(Self.bulkIn)])
        bulk(2, Self.bulkIn)
        bulk(3, Self.bulkOut)
        control(4, .getDeviceDescriptor)
        #expect(handle.inFlightIDs == [3])
        handle.endOperation(.done)
        #expect(port.take() == ["1 completed 0"])
        #expect(handle.inFlightIDs == [3, 4, 2])
    }

    @Test func `a halt is not cleared before the cancelled transfers of the endpoint are back`() {
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkIn)
        bulk(3, Self.bulkOut)
        handle.end(1, .stalled)
        control(4, .clearHalt(0x81))
        #expect(handle.operations == [])
        handle.end(2, .cancelled)
        #expect(handle.operations == [.clearHalt(Self.bulkIn)])
    }

    @Test func `clearing a halt does not wait for a transfer that nobody cancelled`() {
        bulk(1, Self.bulkIn)
        control(2, .clearHalt(0x81))
        #expect(handle.operations == [.clearHalt(Self.bulkIn)])
    }

    @Test func `a second operation follows the first`() {
        control(1, .setConfiguration(1))
        control(2, .setInterface(0, 1))
        control(3, .getDeviceDescriptor)
        #expect(handle.operations == [.setConfiguration(1)])
        handle.endOperation(.done)
        #expect(handle.operations == [.setConfiguration(1), .setInterface(0, setting: 1)])
        #expect(handle.inFlightIDs == [])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [3])
        #expect(port.take() == ["1 completed 0", "2 completed 0"])
    }

    @Test func `warnings of an operation are logged and the guest goes on`() {
        control(1, .setConfiguration(1))
        handle.endOperation(.done, warnings: ["interface 1 cannot be claimed: busy"])
        #expect(port.take() == ["1 completed 0"])
        #expect(log.all == ["warning: host 1:4: interface 1 cannot be claimed: busy"])
    }

    @Test func `the address is never set on the device`() {
        control(1, .setAddress(5))
        #expect(port.take() == ["1 completed 0"])
        #expect(handle.inFlightIDs == [])
        #expect(handle.operations == [])
    }

    @Test func `a cancelled request ends at once and later transfers wait for its operation`() {
        control(1, .setConfiguration(1))
        control(2, .getDeviceDescriptor)
        device.cancel(.init(rawValue: 1))
        #expect(port.take() == ["1 cancelled 0"])
        #expect(handle.inFlightIDs == [])
        handle.endOperation(.done)
        #expect(port.take() == [])
        #expect(handle.inFlightIDs == [2])
    }

    @Test func `a cancelled request that still waits for the kernel is forgotten`() {
        bulk(1, Self.bulkIn)
        device.cancel(.init(rawValue: 1))
        control(2, .clearHalt(0x81))
        bulk(3, Self.bulkIn)
        #expect(handle.operations == [])
        device.cancel(.init(rawValue: 2))
        #expect(port.take() == ["2 cancelled 0"])
        #expect(handle.inFlightIDs == [1, 3])
        handle.end(1, .cancelled)
        #expect(handle.operations == [])
    }

    @Test func `a waiting transfer that is cancelled ends at once`() {
        control(1, .setConfiguration(1))
        bulk(2, Self.bulkIn)
        bulk(3, Self.bulkIn)
        device.cancel(.init(rawValue: 2))
        #expect(port.take() == ["2 cancelled 0"])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [3])
    }

    // MARK: - Reset

    @Test func `a reset ends what is in flight, then resets, then lets later transfers go`() {
        bulk(1, Self.bulkIn)
        device.reset()
        #expect(handle.cancelled == [1])
        control(2, .getDeviceDescriptor)
        #expect(handle.operations == [])
        handle.end(1, .cancelled)
        #expect(port.take() == ["1 cancelled 0"])
        #expect(handle.operations == [.reset])
        #expect(handle.inFlightIDs == [])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [2])
    }

    @Test func `a reset ends what waits`() {
        control(1, .setConfiguration(1))
        bulk(2, Self.bulkIn)
        device.reset()
        #expect(port.take() == ["1 cancelled 0", "2 cancelled 0"])
        #expect(handle.operations == [.setConfiguration(1)])
        control(3, .getDeviceDescriptor)
        handle.endOperation(.done)
        #expect(handle.operations == [.setConfiguration(1), .reset])
        #expect(handle.inFlightIDs == [])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [3])
        #expect(port.take() == [])
    }

    @Test func `a second reset is spared while the device was only read`() {
        device.reset()
        handle.endOperation(.done)
        control(1, .getDeviceDescriptor)
        handle.end(1, transferred: 18)
        device.reset()
        #expect(handle.operations == [.reset])
        control(2, .setAddress(1))
        device.reset()
        #expect(handle.operations == [.reset])
    }

    @Test(arguments: [
        SetupPacket.setConfiguration(1),
        SetupPacket(requestType: 0x21, request: 0xff, value: 0, index: 0, length: 0),
        SetupPacket(requestType: 0xc0, request: 1, value: 0, index: 0, length: 4),
    ])
    func `a device that was changed is reset again`(setup: SetupPacket) {
        device.reset()
        handle.endOperation(.done)
        control(1, setup)
        if handle.operations.count > 1 { handle.endOperation(.done) }
        handle.end(1)
        device.reset()
        #expect(handle.operations.last == .reset)
        #expect(handle.operations.filter { $0 == .reset }.count == 2)
    }

    @Test func `a device that cannot be reset stays`() {
        device.reset()
        handle.endOperation(.refused, warnings: ["reset failed: Other error"])
        #expect(port.disconnections == 0)
        #expect(log.all == ["warning: host 1:4: reset failed: Other error"])
        device.reset()
        #expect(handle.operations == [.reset, .reset])
    }

    // MARK: - Departure

    @Test func `a device that is another after its reset is unplugged`() {
        device.reset()
        control(1, .getDeviceDescriptor)
        handle.endOperation(.disconnected)
        #expect(port.take() == ["1 disconnected 0"])
        #expect(port.disconnections == 1)
    }

    @Test func `a departure ends everything and is told once`() {
        var departures = 0
        device.whenLost = { departures += 1 }
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkIn)
        control(3, .setConfiguration(1))
        bulk(4, Self.bulkOut)
        handle.end(1, .disconnected)
        device.deviceLeft()
        handle.end(2, .cancelled)
        handle.endOperation(.disconnected)
        bulk(5, Self.bulkOut)
        #expect(
            port.take() == [
                "1 disconnected 0", "3 disconnected 0", "4 disconnected 0", "2 disconnected 0",
                "5 disconnected 0",
            ])
        #expect(port.disconnections == 1)
        #expect(departures == 1)
        #expect(handle.inFlightIDs == [])
    }

    @Test func `a departure that shows at submission is told`() {
        handle.answers = [.disconnected]
        bulk(1, Self.bulkIn)
        #expect(port.take() == ["1 disconnected 0"])
        #expect(port.disconnections == 1)
        device.reset()
        #expect(handle.operations == [])
    }

    @Test func `a departure while waiting transfers start ends them all`() {
        control(1, .setConfiguration(1))
        bulk(2, Self.bulkIn)
        bulk(3, Self.bulkIn)
        handle.answers = [.disconnected]
        handle.endOperation(.done)
        #expect(port.take().sorted() == ["1 completed 0", "2 disconnected 0", "3 disconnected 0"])
        #expect(port.disconnections == 1)
    }

    @Test func `a detached device cancels its transfers and says no more`() {
        bulk(1, Self.bulkIn)
        control(2, .setConfiguration(1))
        bulk(3, Self.bulkIn)
        device.detached()
        #expect(handle.cancelled == [1])
        handle.end(1, .cancelled)
        handle.endOperation(.done)
        #expect(port.take() == [])
        #expect(handle.inFlightIDs == [])
    }

    // MARK: - Streams

    @Test func `descriptors offer the streams that the host has`() throws {
        device.streams = StreamLimit(granted: 7, of: 16)
        let whole = StreamLimitTests.disk()
        let offered = StreamLimitTests.disk(exponent: 2)
        func answer(_ id: UInt64, _ setup: SetupPacket) -> [UInt8] {
            let bytes = Bytes(whole)
            device.submit(
                Transfer(
                    id: .init(rawValue: id), endpoint: .control, kind: .control(setup),
                    buffer: bytes.buffer))
            handle.end(id, transferred: whole.count)
            return bytes.content
        }
        func get(_ type: UInt8, _ value: UInt16) -> SetupPacket {
            SetupPacket(requestType: type, request: 6, value: value, index: 0, length: 255)
        }
        #expect(answer(1, get(0x80, 0x200)) == offered)
        #expect(answer(2, get(0x80, 0x201)) == offered)
        // What others ask for in words like these means something else.
        #expect(answer(3, get(0x80, 0x300)) == whole)
        #expect(answer(4, get(0xc0, 0x200)) == whole)
        #expect(answer(5, get(0x81, 0x200)) == whole)
        device.streams = nil
        #expect(answer(6, get(0x80, 0x200)) == whole)
    }

    // MARK: - Memory of the kernel

    @Test func `a transfer without memory waits for another to end`() {
        bulk(1, Self.bulkIn)
        handle.answers = [.noMemory]
        bulk(2, Self.bulkIn)
        bulk(3, Self.bulkIn)
        #expect(handle.inFlightIDs == [1])
        handle.end(1, transferred: 512)
        #expect(handle.inFlightIDs == [2, 3])
    }

    @Test func `a transfer without memory is tried again when nothing of ours is in flight`() {
        handle.answers = [.noMemory, .noMemory]
        bulk(1, Self.bulkIn)
        loop.advance(by: HostDevice.starvationStep)
        #expect(handle.inFlightIDs == [])
        loop.advance(by: HostDevice.starvationStep)
        #expect(handle.inFlightIDs == [1])
        #expect(log.all == [])
    }

    @Test func `a transfer that never gets memory fails and the limit is named`() {
        handle.answers = [HostSubmission](repeating: .noMemory, count: 1000)
        bulk(1, Self.bulkIn, count: 4096)
        loop.advance(by: HostDevice.longestStarvation - HostDevice.starvationStep)
        #expect(port.take() == [])
        loop.advance(by: HostDevice.starvationStep)
        #expect(port.take() == ["1 failed 0"])
        #expect(log.all.count == 1)
        #expect(log.all.first?.contains("usbfs_memory_mb") == true)
        #expect(log.all.first?.contains("4096 bytes") == true)
        handle.answers = []
        bulk(2, Self.bulkIn)
        #expect(handle.inFlightIDs == [2])
    }

    @Test func `transfers that wait for the device do not hide that there is no memory`() {
        handle.memory = 1000
        bulk(1, Self.interruptIn, count: 8)
        bulk(2, Self.bulkOut, count: 1 << 20)
        for id in 3..<60 as Range<UInt64> {
            loop.advance(by: HostDevice.starvationStep)
            handle.end(handle.inFlightIDs[0], transferred: 8)
            bulk(id, Self.interruptIn, count: 8)
        }
        #expect(port.take().contains("2 failed 0"))
    }

    @Test func `a slow device with large transfers starves nobody`() {
        bulk(1, Self.bulkIn, count: 1 << 20)
        bulk(2, Self.bulkIn, count: 1 << 20)
        handle.answers = [HostSubmission](repeating: .noMemory, count: 100_000)
        bulk(3, Self.bulkIn, count: 1 << 20)
        loop.advance(by: HostDevice.longestStarvation - HostDevice.starvationStep)
        handle.end(1, transferred: 1 << 20)
        loop.advance(by: HostDevice.longestStarvation - HostDevice.starvationStep)
        handle.answers = []
        handle.end(2, transferred: 1 << 20)
        #expect(handle.inFlightIDs == [3])
        #expect(log.all == [])
    }

    @Test func `a starved transfer can be cancelled`() {
        handle.answers = [.noMemory]
        bulk(1, Self.bulkIn)
        device.cancel(.init(rawValue: 1))
        #expect(port.take() == ["1 cancelled 0"])
        loop.advance(by: .seconds(2))
        #expect(handle.inFlightIDs == [])
    }
}
