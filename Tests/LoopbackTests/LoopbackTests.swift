// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

@testable import Loopback

/// Configuration 2: the IN endpoint returns the data of the OUT endpoint.
@Suite struct LoopbackTests {
    let host: LoopbackHost

    init() throws { host = try LoopbackHost(configuration: 2) }

    @Test(arguments: [1, 2, 5], [1, 511, 512, 513, 5000, 262_144])
    func `data that was written is read`(pieces: Int, count: Int) {
        host.pieces = pieces
        let bytes = ramp(count)
        #expect(host.status(host.send(bytes)) == .completed)
        #expect(host.end(host.receive(count)) == .init(.completed, bytes))
    }

    @Test func `an IN transfer waits for data`() {
        let read = host.receive(1024)
        #expect(host.status(read) == nil)
        #expect(host.status(host.send(ramp(100))) == .completed)
        #expect(host.end(read) == .init(.completed, ramp(100)))
    }

    @Test func `a short packet ends an IN transfer, packets of full size do not`() {
        host.send(ramp(1024))
        let read = host.receive(4096)
        #expect(host.status(read) == nil)
        host.send(ramp(10, from: 1024))
        #expect(host.end(read) == .init(.completed, ramp(1034)))
        host.send([1, 2, 3])
        host.send([4])
        #expect(host.end(host.receive(4096))?.bytes == [1, 2, 3])
        #expect(host.end(host.receive(4096))?.bytes == [4])
    }

    @Test func `a zero-length packet ends a transfer, or is one by itself behind a full transfer`()
    {
        host.send(ramp(512))
        host.send([])
        #expect(host.end(host.receive(512)) == .init(.completed, ramp(512)))
        #expect(host.end(host.receive(512)) == .init(.completed))
        host.send(ramp(512))
        host.send([])
        #expect(host.end(host.receive(1024)) == .init(.completed, ramp(512)))
        #expect(host.status(host.receive(512)) == nil)
    }

    @Test func `an OUT transfer waits for space in the queue`() {
        let first = host.send(ramp(LoopbackLimits.loopedBytes))
        let second = host.send(ramp(1000, from: 5))
        let third = host.send([9])
        #expect(host.status(first) == .completed)
        #expect(host.status(second) == nil)
        #expect(host.status(third) == nil)
        let read = host.receive(1024)
        #expect(host.end(read)?.bytes == ramp(1024))
        #expect(host.status(second) == .completed)
        #expect(host.status(third) == .completed)
        #expect(
            host.count(host.receive(LoopbackLimits.loopedBytes - 1024)) == LoopbackLimits
                .loopedBytes - 1024)
        #expect(host.end(host.receive(4096))?.bytes == ramp(1000, from: 5))
        #expect(host.end(host.receive(4096))?.bytes == [9])
        #expect(!host.port.hasDoubles)
    }

    @Test func `a transfer larger than the queue completes`() {
        let bytes = ramp(LoopbackLimits.loopedBytes * 3 + 7)
        let write = host.send(bytes)
        #expect(host.status(write) == nil)
        #expect(host.end(host.receive(bytes.count + 1)) == .init(.completed, bytes))
        #expect(host.status(write) == .completed)
    }

    @Test func `an OUT transfer waits when the queue has too many short packets`() {
        for _ in 0..<LoopbackLimits.loopedShortPackets { host.send([7]) }
        let over = host.send([8])
        #expect(host.status(over) == nil)
        #expect(host.end(host.receive(64))?.bytes == [7])
        #expect(host.status(over) == .completed)
    }

    @Test func `a cancelled transfer reports the bytes that have moved`() {
        let read = host.receive(2048)
        host.send(ramp(1024))
        host.device.cancel(read)
        #expect(host.end(read) == .init(.cancelled, ramp(1024)))
        let write = host.send(ramp(LoopbackLimits.loopedBytes + 512))
        let next = host.send([])
        host.device.cancel(write)
        #expect(host.status(write) == .cancelled)
        #expect(host.count(write) == LoopbackLimits.loopedBytes)
        // The next transfer proceeds.
        #expect(host.status(next) == .completed)
        host.device.cancel(Transfer.ID(rawValue: 9999))
    }

    @Test func `a reset, a configuration and a disconnect empty the queue`() {
        host.send([1])
        let waiting = host.receive(.bulkIn, 64)
        #expect(host.status(waiting) == .completed)
        let pending = host.receive(64)
        host.device.reset()
        #expect(host.status(pending) == .cancelled)
        host.control(0, 9, value: 2)
        host.send([2])
        host.control(0, 9, value: 2)
        let fresh = host.receive(64)
        #expect(host.status(fresh) == nil)
        host.control(0, 9, value: 3)
        #expect(host.status(fresh) == .failed)
        host.control(0, 9, value: 2)
        let last = host.receive(64)
        host.device.detached()
        #expect(host.status(last) == nil)
        host.device.attach(to: host.port)
        host.control(0, 9, value: 2)
        host.send([3])
        #expect(host.end(host.receive(64))?.bytes == [3])
        #expect(!host.port.hasDoubles)
    }

    @Test func `a halt stalls the transfers that wait`() {
        let read = host.receive(64)
        host.setHalt(.bulkIn)
        #expect(host.status(read) == .stalled)
        host.send([5])
        host.clearHalt(.bulkIn)
        #expect(host.end(host.receive(64))?.bytes == [5])
    }
}
