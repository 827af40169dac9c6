// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Streams of bulk endpoints: Stream Context Arrays, doorbells with a Stream ID, errors
/// (xHCI 4.12, 6.2.4, 5.6).
struct StreamTests {
    let guest: Guest
    let device = TestDevice(.superSpeed)
    let slot: GuestSlot
    let buffer: GuestAddress
    var driver: GuestDriver { guest.driver }
    private let address = EndpointAddress(2, .in)

    init() throws {
        guest = try Guest()
        slot = try guest.plug(device)
        buffer = guest.memory.allocate(0x10000, alignment: 65536)
    }

    private func stream(of transfer: Transfer) -> UInt16? {
        if case .bulk(let stream) = transfer.kind { return stream }
        return nil
    }

    private var normal: GuestTRB { .normal(buffer, 64, .interruptOnCompletion) }

    // MARK: - Data

    @Test(arguments: [1, 3, 7])
    func `each stream has its own ring, and transfers carry its Stream ID`(size: Int) throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: size)
        device.onTransfer = { transfer in
            guard case .bulk(let stream) = transfer.kind else { return nil }
            return .give([UInt8(truncatingIfNeeded: stream)])
        }
        let last = (2 << size) - 1
        #expect(device.streams[address] == last)
        for stream in [1, last, 2, 1] {
            let target = buffer + stream * 64
            let pointer = streams.submit(
                stream,
                [.normal(target, 64, [.interruptOnCompletion, .interruptOnShortPacket])])
            let event = try streams.event()
            #expect(event.code == .shortPacket)
            #expect(event.length == 63)
            #expect(event.pointer == pointer.first)
            #expect(
                guest.memory.bytes(at: target, count: 1) == [UInt8(truncatingIfNeeded: stream)])
        }
    }

    @Test func `an endpoint without a used stream survives a detached device`() throws {
        _ = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        guest.machine.detach(device)
        guest.machine.pass(.milliseconds(1))
        #expect(guest.answersCommands)
    }

    @Test func `streams complete in any order, TDs of one stream in ring order`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        device.onTransfer = { $0.endpoint == .control ? nil : .hold }
        var pointers: [Int: [GuestAddress]] = [:]
        for stream in 1...3 { pointers[stream] = streams.submit(stream, [normal, normal]) }
        guest.machine.turn()
        #expect(device.pending.map { stream(of: $0) } == [1, 1, 2, 2, 3, 3])
        for index in [4, 0, 2, 3, 1, 5] {
            let transfer = device.pending[index]
            device.complete(transfer.completion(.completed, transferred: 64))
        }
        let events = driver.takeAll()
        #expect(events.count == 6)
        for stream in 1...3 {
            let own = pointers[stream] ?? []
            #expect(events.map(\.pointer).filter { own.contains($0) } == own)
        }
        // The fifth transfer, the first of stream 3, completed before all others.
        #expect(events.first?.pointer == pointers[3]?[0])
    }

    @Test func `secondary stream arrays lead to a ring`() throws {
        let streams = try GuestStreams(
            slot, address, maxPrimaryStreams: 1, layout: .secondary(rings: [3]))
        device.onTransfer = { $0.endpoint == .control ? nil : .give([9]) }
        // The primary index is in the low two bits of the Stream ID, the secondary index above.
        for stream in [1, 1 + 4 * 7, 2 + 4 * 3, 3] {
            let pointer = streams.submit(stream, [normal])
            #expect(try streams.event().pointer == pointer.first)
            #expect(device.lastStream == UInt16(stream))
        }
    }

    @Test func `all streams of an endpoint work in memory that only messages reach`() throws {
        let guest = try Guest(.remote)
        let device = TestDevice(.superSpeed) { $0.endpoint == .control ? nil : .give([5]) }
        let streams = try GuestStreams(
            try guest.plug(device), EndpointAddress(1, .in), maxPrimaryStreams: 3)
        let buffer = guest.memory.allocate(64)
        for stream in 1...15 {
            streams.submit(stream, [.normal(buffer, 1, .interruptOnCompletion)])
        }
        for _ in 1...15 { #expect(try streams.event().code == .success) }
    }

    /// For a UAS disk, Linux drops configured endpoints and adds them again with streams, with
    /// contexts copied from the output contexts.
    @Test func `Configure Endpoint adds and removes streams of a configured endpoint`() throws {
        let endpoints = try slot.configure(.bulkIn(1), .bulkIn(2), .bulkOut(3))
        let flags = endpoints.reduce(UInt32(0)) { $0 | 1 << UInt32($1.contextIndex) }
        for streams in [UInt32(4), 0, 4] {
            slot.prepareInput(add: flags | 1, drop: flags)
            slot.writeInput(0, slot.slotContext.words)
            for endpoint in endpoints {
                var context = slot.endpointContext(endpoint.contextIndex)
                context.words[0] &= ~(0x1f << 10 | 1 << 15)
                context.words[0] |= streams << 10 | (streams > 0 ? 1 << 15 : 0)
                context.words[2] = UInt32(truncatingIfNeeded: buffer.rawValue)
                context.words[3] = UInt32(truncatingIfNeeded: buffer.rawValue >> 32)
                slot.writeInput(endpoint.contextIndex, context.words)
            }
            let event = try slot.configureCommand()
            #expect(event.code == .success)
            #expect(device.streams[address] == (streams > 0 ? 31 : 0))
        }
    }

    // MARK: - Invalid Stream IDs

    @Test(arguments: [8, 9, 100, 65533, 65534, 65535])
    func `a doorbell with an invalid Stream ID halts the endpoint`(stream: Int) throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        streams.ringDoorbell(stream)
        #expect(try streams.event().code == .invalidStreamID)
        #expect(streams.context.state == .halted)
        #expect(try streams.reset().code == .success)
        device.onTransfer = { $0.endpoint == .control ? nil : .give([5]) }
        streams.submit(1, [normal])
        #expect(try streams.event().code != .invalidStreamID)
    }

    @Test func `a doorbell without a Stream ID halts an endpoint with streams`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        streams.ringDoorbell(0)
        #expect(try streams.event().code == .invalidStreamID)
        #expect(streams.context.state == .halted)
    }

    @Test func `a stream context of the wrong type halts the endpoint`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        guest.memory.store(buffer.rawValue | 3 << 1, at: streams.array + 2 * 16)
        streams.ringDoorbell(2)
        #expect(try streams.event().code == .invalidStreamType)
        #expect(streams.context.state == .halted)
    }

    @Test func `a doorbell with a Stream ID is ignored by an endpoint without streams`() throws {
        let endpoint = try slot.configureOne(.bulkIn(3))
        device.onTransfer = { $0.endpoint == .control ? nil : .give([5]) }
        _ = endpoint.ring.push([normal])
        endpoint.ringDoorbell(stream: 1)
        #expect(driver.takeAll().isEmpty)
        endpoint.ringDoorbell()
        #expect(driver.takeAll().count == 1)
    }

    @Test func `stream arrays outside guest memory, or larger than offered, are errors`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        guest.memory.store(guest.nowhere.rawValue | 1 << 1, at: streams.array + 16)
        streams.ringDoorbell(1)
        #expect(try streams.event().code == .trbError)
        #expect(throws: GuestError.self) {
            try GuestStreams(slot, EndpointAddress(4, .in), maxPrimaryStreams: 8)
        }
        try guest.expectRecovery()
    }

    @Test func `doorbells for all Stream IDs are bounded work`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 7)
        for stream in 0...65535 { streams.ringDoorbell(stream) }
        driver.takeAll()
        #expect(!guest.machine.isSpinning)
        try guest.expectRecovery()
    }

    // MARK: - Stop and halt

    @Test func `a stall halts all streams and requeues their TDs`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        device.onTransfer = { $0.endpoint == .control ? nil : .hold }
        let first = streams.submit(1, [normal, normal])
        let second = streams.submit(2, [normal])
        guest.machine.turn()
        device.answerNext(.end(.stalled, transferred: 0))
        let event = try streams.event()
        #expect(event.code == .stall)
        #expect(event.pointer == first[0])
        #expect(streams.context.state == .halted)
        #expect(streams.pointer(of: 1) == first[0].rawValue | 1 << 1 | 1)
        #expect(streams.pointer(of: 2) == second[0].rawValue | 1 << 1 | 1)
        #expect(device.cancelled.count == 2)

        #expect(try streams.reset().code == .success)
        #expect(try streams.setDequeuePointer(1).code == .success)
        #expect(streams.pointer(of: 1) == streams.rings[1]!.enqueuePointer.rawValue | 1 << 1 | 1)
        device.onTransfer = { $0.endpoint == .control ? nil : .give([1]) }
        streams.ringDoorbell(2)
        #expect(try streams.event().pointer == second[0])
        #expect(driver.takeAll().isEmpty)
    }

    /// A completed TD has its event and is not executed again, also if another stream halts the
    /// endpoint.
    @Test func `a stall does not repeat completed TDs of other streams`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        device.onTransfer = { $0.endpoint == .control ? nil : .hold }
        let first = streams.submit(1, [normal])
        let second = streams.submit(2, [normal, normal])
        guest.machine.turn()
        let held = device.pending
        device.complete(held[0].completion(.stalled))
        device.complete(held[1].completion(.completed, transferred: 64))
        let events = driver.takeAll()
        #expect(Set(events.map(\.pointer)) == [first[0], second[0]])
        #expect(events.first { $0.pointer == second[0] }?.code == .success)
        #expect(streams.pointer(of: 2) == second[1].rawValue | 1 << 1 | 1)

        // The same holds if a doorbell with an invalid Stream ID halts the endpoint.
        #expect(try streams.reset().code == .success)
        #expect(try streams.setDequeuePointer(1).code == .success)
        streams.ringDoorbell(2)
        guest.machine.turn()
        device.complete(device.pending.last!.completion(.completed, transferred: 64))
        streams.ringDoorbell(100)
        let rest = driver.takeAll()
        #expect(rest.first { $0.pointer == second[1] }?.code == .success)
        #expect(rest.contains { $0.code == .invalidStreamID })
    }

    /// The device may wait for the transfer of one particular stream.
    @Test func `a stream does not wait for others that have many TDs in flight`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 6)
        device.onTransfer = { $0.endpoint == .control ? nil : .hold }
        for stream in 1...100 { streams.submit(stream, [normal, normal]) }
        guest.machine.pass(.milliseconds(1))
        #expect(Set(device.pending.compactMap { self.stream(of: $0) }).count == 100)
        #expect(device.pending.count < 140, "the others share the limit of the endpoint")
        device.onTransfer = { $0.endpoint == .control ? nil : .give([1]) }
        while device.answerNext(.give([1])) {}
        #expect(driver.takeAll().count == 200)
    }

    @Test func `Stop Endpoint posts an event for each stream in flight, and each resumes`()
        throws
    {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        device.onTransfer = { $0.endpoint == .control ? nil : .hold }
        device.transferredWhenCancelled = 10
        let pointers = (1...3).map { streams.submit($0, [normal])[0] }
        guest.machine.turn()
        #expect(try streams.stop().code == .success)
        let events = driver.takeAll(after: .zero)
        #expect(events.map(\.code) == [.stopped, .stopped, .stopped])
        #expect(events.map(\.pointer) == pointers)
        #expect(events.map(\.length) == [54, 54, 54])
        #expect(streams.context.state == .stopped)
        #expect(streams.pointer(of: 3) == pointers[2].rawValue | 1 << 1 | 1)

        device.onTransfer = {
            $0.endpoint == .control ? nil : .give(Array(repeating: 1, count: 54))
        }
        for stream in 1...3 { streams.ringDoorbell(stream) }
        let rest = driver.takeAll()
        #expect(rest.map(\.code) == [.success, .success, .success])
        #expect(rest.map(\.length) == [0, 0, 0])
    }

    /// A stream resumes where it was stopped, also if another one has halted the endpoint since.
    @Test func `a stall does not repeat data that a stopped stream has moved`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        device.onTransfer = { $0.endpoint == .control ? nil : .hold }
        device.transferredWhenCancelled = 10
        streams.submit(1, [normal])
        let second = streams.submit(2, [normal])
        guest.machine.turn()
        #expect(try streams.stop().code == .success)
        #expect(driver.takeAll(after: .zero).map(\.length) == [54, 54])

        device.onTransfer = { $0.endpoint == .control ? nil : .end(.stalled, transferred: 0) }
        streams.ringDoorbell(1)
        #expect(try streams.event().code == .stall)
        #expect(try streams.reset().code == .success)
        #expect(try streams.setDequeuePointer(1).code == .success)
        var asked: [Int] = []
        device.onTransfer = { transfer in
            asked.append(transfer.buffer.count)
            return .give(Array(repeating: 7, count: 54))
        }
        streams.ringDoorbell(2)
        let event = try streams.event()
        #expect(event.code == .success)
        #expect(event.pointer == second[0])
        #expect(asked == [54])
    }

    @Test func `Set TR Dequeue Pointer needs a valid Stream ID and ignores SCT`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        streams.submit(1, [])
        #expect(try streams.stop().code == .success)
        for stream in [0, 8, 65535] {
            #expect(try streams.setDequeuePointer(stream).code == .trbError)
        }
        // FreeBSD sets no SCT.
        #expect(try streams.setDequeuePointer(1, streamType: 0).code == .success)
        #expect(streams.pointer(of: 1) & 0xe == 1 << 1)
        #expect(try streams.setDequeuePointer(5).code == .success)
    }

    @Test func `an unplugged device fails the transfers of all streams`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        device.onTransfer = { $0.endpoint == .control ? nil : .hold }
        for stream in 1...3 { streams.submit(stream, [normal]) }
        guest.machine.turn()
        guest.machine.detach(device)
        #expect(driver.takeAll().contains { $0.code == .usbTransactionError })
        #expect(streams.context.state == .halted)
        try slot.disable()
        try guest.expectRecovery()
    }

    @Test func `dropping the endpoint removes the device's streams`() throws {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 2)
        #expect(device.streams[address] == 7)
        slot.prepareInput(add: 1, drop: 1 << UInt32(streams.contextIndex))
        slot.writeInput(0, slot.slotContext.words)
        #expect(try slot.configureCommand().code == .success)
        #expect(device.streams[address] == 0)
    }

    @Test func `a stream that waits for in-flight credits starts when other streams complete`()
        throws
    {
        let streams = try GuestStreams(slot, address, maxPrimaryStreams: 1, segments: [5000])
        device.onTransfer = { $0.endpoint == .control ? nil : .hold }
        // Two TDs of the maximum length are the limit of an endpoint.
        let long =
            (0..<4095).map { _ in GuestTRB.normal(buffer, 16, .chain) }
            + [GuestTRB.normal(buffer, 16, .interruptOnCompletion)]
        streams.submit(1, long)
        streams.submit(2, long)
        guest.machine.pass(.seconds(1))
        streams.submit(3, [.normal(buffer, 16, .interruptOnCompletion)])
        guest.machine.pass(.seconds(1))
        #expect(device.pending.compactMap { stream(of: $0) } == [1, 2])
        for transfer in device.pending {
            device.complete(transfer.completion(.completed, transferred: transfer.buffer.count))
        }
        guest.machine.pass(.seconds(1))
        #expect(device.pending.compactMap { stream(of: $0) } == [1, 2, 3])
        #expect(!guest.machine.isSpinning)
    }
}
