// SPDX-License-Identifier: Apache-2.0

import TestKit
import Testing
import USB

@testable import HostUSB

/// The order of transfers, operations and resets, with a scripted kernel.
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

    @Test func `the completion of a cancelled transfer is fetched at once`() {
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkIn)
        device.cancel(.init(rawValue: 2))
        #expect(handle.reaps == 1)
        device.reset()
        #expect(handle.reaps == 2)
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

    @Test func `a stall reaches the guest and cancels the transfers behind it`() {
        for id in 1...3 as ClosedRange<UInt64> { bulk(id, Self.bulkIn) }
        bulk(4, Self.bulkOut)
        handle.end(1, .stalled)
        // Newest first, so the kernel starts none of them.
        #expect(handle.cancelled == [3, 2])
        handle.end(2, .cancelled)
        handle.end(3, .cancelled)
        #expect(port.take() == ["1 stalled 0", "2 cancelled 0", "3 cancelled 0"])
        #expect(handle.inFlightIDs == [4])
    }

    @Test(arguments: [Transfer.Status.babbled, .failed])
    func `an error cancels the transfers behind it`(status: Transfer.Status) {
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkIn)
        handle.end(1, status, transferred: 512)
        #expect(handle.cancelled == [2])
        #expect(port.take() == ["1 \(status) 512"])
    }

    @Test func `a stalled control transfer cancels nothing`() {
        control(1, .getDeviceDescriptor)
        control(2, .getDeviceDescriptor)
        handle.end(1, .stalled)
        #expect(handle.cancelled == [])
        #expect(port.take() == ["1 stalled 0"])
    }

    @Test func `a transfer that the kernel cancels by itself has failed`() {
        bulk(1, Self.bulkIn)
        handle.end(1, .cancelled)
        #expect(port.take() == ["1 failed 0"])
    }

    @Test func `a cancelled transfer may have completed already`() {
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
    func `a refused transfer is a stall of the control endpoint and a failure elsewhere`() {
        handle.results = [.refused, .refused]
        control(1, .getDeviceDescriptor)
        bulk(2, Self.bulkIn)
        #expect(port.take() == ["1 stalled 0", "2 failed 0"])
    }

    @Test func `a refused transfer completes after the transfers before it`() {
        bulk(1, Self.bulkIn)
        handle.results = [.refused]
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

    @Test func `a lost packet of an isochronous endpoint cancels nothing`() {
        for id in 1...3 as ClosedRange<UInt64> { isochronous(id) }
        handle.end(1, transferred: 192)
        handle.end(2, .failed)
        handle.end(3, transferred: 10)
        #expect(handle.cancelled == [])
        #expect(port.take() == ["1 completed 192", "2 failed 0", "3 completed 10"])
    }

    @Test func `a transfer in the batch of a cancelled one is cancelled too`() {
        for id in 1...2 as ClosedRange<UInt64> { isochronous(id) }
        device.cancel(.init(rawValue: 2))
        handle.end(1, .cancelled)
        handle.end(2, .cancelled)
        #expect(port.take() == ["1 cancelled 0", "2 cancelled 0"])
    }

    @Test func `a problem that the handle reports is logged`() {
        device.report("no memory")
        #expect(log.all == ["warning: host 1:4: no memory"])
    }

    // MARK: - Memory of the kernel

    @Test func `a transfer without memory waits for another to end`() {
        bulk(1, Self.bulkIn)
        handle.results = [.noMemory]
        bulk(2, Self.bulkIn)
        bulk(3, Self.bulkIn)
        #expect(handle.inFlightIDs == [1])
        handle.end(1, transferred: 512)
        #expect(handle.inFlightIDs == [2, 3])
    }

    @Test func `a transfer without memory is tried again when no transfer is in flight`() {
        handle.results = [.noMemory, .noMemory]
        bulk(1, Self.bulkIn)
        loop.advance(by: HostDevice.memoryRetryDelay)
        #expect(handle.inFlightIDs == [])
        loop.advance(by: HostDevice.memoryRetryDelay)
        #expect(handle.inFlightIDs == [1])
        #expect(log.all == [])
    }

    @Test func `a transfer that never gets memory fails and the limit is named`() {
        handle.results = [SubmissionResult](repeating: .noMemory, count: 1000)
        bulk(1, Self.bulkIn, count: 4096)
        loop.advance(by: HostDevice.memoryTimeout - HostDevice.memoryRetryDelay)
        #expect(port.take() == [])
        loop.advance(by: HostDevice.memoryRetryDelay)
        #expect(port.take() == ["1 failed 0"])
        #expect(log.all.count == 1)
        #expect(log.all.first?.contains("usbfs_memory_mb") == true)
        #expect(log.all.first?.contains("4096 bytes") == true)
        handle.results = []
        bulk(2, Self.bulkIn)
        #expect(handle.inFlightIDs == [2])
    }

    @Test func `small transfers that end do not prolong the wait for memory`() {
        handle.memory = 1000
        bulk(1, Self.interruptIn, count: 8)
        bulk(2, Self.bulkOut, count: 1 << 20)
        for id in 3..<60 as Range<UInt64> {
            loop.advance(by: HostDevice.memoryRetryDelay)
            handle.end(handle.inFlightIDs[0], transferred: 8)
            bulk(id, Self.interruptIn, count: 8)
        }
        #expect(port.take().contains("2 failed 0"))
    }

    @Test func `each large transfer that ends prolongs the wait for memory`() {
        bulk(1, Self.bulkIn, count: 1 << 20)
        bulk(2, Self.bulkIn, count: 1 << 20)
        handle.results = [SubmissionResult](repeating: .noMemory, count: 100_000)
        bulk(3, Self.bulkIn, count: 1 << 20)
        loop.advance(by: HostDevice.memoryTimeout - HostDevice.memoryRetryDelay)
        handle.end(1, transferred: 1 << 20)
        loop.advance(by: HostDevice.memoryTimeout - HostDevice.memoryRetryDelay)
        handle.results = []
        handle.end(2, transferred: 1 << 20)
        #expect(handle.inFlightIDs == [3])
        #expect(log.all == [])
    }

    @Test func `a transfer that waits for memory is not started behind a failure`() {
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkIn)
        handle.results = [.noMemory]
        bulk(3, Self.bulkIn)
        bulk(4, Self.bulkIn)
        handle.end(1, .stalled)
        handle.end(2, .cancelled)
        #expect(
            port.take() == ["1 stalled 0", "2 cancelled 0", "3 cancelled 0", "4 cancelled 0"])
        loop.advance(by: HostDevice.memoryTimeout * 2)
        #expect(handle.inFlightIDs == [])
        bulk(5, Self.bulkIn)
        #expect(handle.inFlightIDs == [5])
    }

    @Test func `no transfer is started behind one that never gets memory`() {
        handle.memory = 1000
        bulk(1, Self.bulkIn, count: 1 << 20)
        bulk(2, Self.bulkIn)
        loop.advance(by: HostDevice.memoryTimeout)
        #expect(port.take() == ["1 failed 0", "2 cancelled 0"])
        #expect(handle.inFlightIDs == [])
    }

    @Test func `no transfer is started behind a refused one that has not completed`() {
        bulk(1, Self.bulkIn)
        handle.results = [.refused]
        bulk(2, Self.bulkIn)
        bulk(3, Self.bulkIn)
        #expect(handle.inFlightIDs == [1])
        handle.end(1, transferred: 512)
        #expect(port.take() == ["1 completed 512", "2 failed 0", "3 cancelled 0"])
        bulk(4, Self.bulkIn)
        #expect(handle.inFlightIDs == [4])
    }

    @Test func `a refusal ends the wait for memory, and the next wait has its own timeout`() {
        handle.results = [.noMemory, .refused]
        bulk(1, Self.bulkIn)
        loop.advance(by: HostDevice.memoryRetryDelay)
        #expect(port.take() == ["1 failed 0"])
        handle.memory = 1000
        bulk(2, Self.bulkIn, count: 1 << 20)
        loop.advance(by: HostDevice.memoryTimeout)
        #expect(port.take() == ["2 failed 0"])
    }

    @Test func `a transfer that waits for memory can be cancelled`() {
        handle.results = [.noMemory]
        bulk(1, Self.bulkIn)
        device.cancel(.init(rawValue: 1))
        #expect(port.take() == ["1 cancelled 0"])
        loop.advance(by: .seconds(2))
        #expect(handle.inFlightIDs == [])
    }
}
