// SPDX-License-Identifier: Apache-2.0

import Platform
import TestKit
import Testing
import VFIOClient

@testable import VFIOUser

@Suite("messages on a socket")
struct FramingTests {
    let harness: Harness
    var device: TestDevice { harness.device }

    init() throws { harness = try Harness.ready() }

    private let read = WireMessage(
        id: 1, command: 9, payload: WireMessage.region(7, offset: 0x40, count: 4)
    ).bytes
    private let answerSize = 36

    @Test("a message is received in two parts, cut at any byte", arguments: 1..<32)
    func split(at cut: Int) throws {
        try harness.client.send(Array(read[..<cut]))
        try harness.runUntilIdle()
        #expect(try harness.client.receiveSome(99) == nil)
        try harness.client.send(Array(read[cut...]))
        try harness.runUntilIdle()
        #expect(try harness.client.receiveSome(99)?.count == answerSize)
    }

    @Test("a message is received byte by byte")
    func byteByByte() throws {
        for byte in read {
            try harness.client.send([byte])
            try harness.runUntilIdle()
        }
        #expect(try harness.client.receiveSome(99)?.count == answerSize)
    }

    @Test("messages received together are answered in order")
    func joined() throws {
        let count = 3000
        var bytes: [UInt8] = []
        for index in 0..<count {
            bytes +=
                WireMessage(
                    id: UInt16(index), command: 9,
                    payload: WireMessage.region(7, offset: 0x40, count: 4)
                ).bytes
        }
        // The last message is incomplete.
        try harness.client.send(Array(bytes.dropLast(5)))
        for index in 0..<count - 1 {
            #expect(try harness.client.receiveMessage().id == UInt16(index))
        }
        try harness.client.send(Array(bytes.suffix(5)))
        #expect(try harness.client.receiveMessage().id == UInt16(count - 1))
    }

    @Test("the longest message is handled, a longer one ends the connection")
    func longest() throws {
        let data = [UInt8](repeating: 1, count: VFIOUserLimits.dataTransfer)
        let longest = WireMessage(
            id: 1, command: 10,
            payload: WireMessage.region(0, offset: 0, count: UInt32(data.count), data: data))
        #expect(longest.size == VFIOUserLimits.messageSize)
        // Between two short messages, so that it lies across the end of the buffer.
        for _ in 0..<3 {
            try harness.client.send(read + longest.bytes + read)
            #expect(try harness.client.receiveMessage().size == answerSize)
            #expect(try harness.client.receiveMessage().isError)
            #expect(try harness.client.receiveMessage().size == answerSize)
        }
        var longer = longest.bytes
        longer.replaceSubrange(
            4..<8, with: Array(littleEndian: UInt32(VFIOUserLimits.messageSize + 1)))
        try harness.client.send(Array(longer.prefix(16)))
        #expect(try harness.client.isClosedByServer())
        #expect(
            try harness.end()
                == .protocolViolation("REGION_WRITE with \(VFIOUserLimits.messageSize + 1) bytes"))
    }

    @Test("a message shorter than its header ends the connection", arguments: [0, 1, 15])
    func tooShort(size: UInt32) throws {
        var bytes = read
        bytes.replaceSubrange(4..<8, with: Array(littleEndian: size))
        try harness.client.send(bytes)
        #expect(try harness.client.isClosedByServer())
        #expect(try harness.end() == .protocolViolation("REGION_READ with \(size) bytes"))
    }

    @Test("a message that is neither request nor reply ends the connection", arguments: [2, 3, 15])
    func type(type: UInt32) throws {
        try harness.client.send(WireMessage(id: 1, command: 9, flags: type))
        #expect(try harness.client.isClosedByServer())
    }

    @Test("a reply without a request is dropped")
    func unexpectedReply() throws {
        for command: UInt16 in [0, 9, 11, 12] {
            try harness.client.send(
                WireMessage(
                    id: 1, command: command, flags: WireMessage.reply, payload: [1, 2, 3]))
        }
        #expect(try harness.isAlive())
    }

    @Test(
        "a client that disconnects between, within or after messages is detected",
        arguments: [0, 5, 20, 32])
    func disconnects(cut: Int) throws {
        try harness.client.send(Array(read.prefix(cut)))
        harness.client.close()
        #expect(try harness.end() == .clientDisconnected)
        #expect(harness.connection?.isClosed == true)
    }

    @Test("a client that shuts down its socket has disconnected")
    func shutsDown() throws {
        harness.client.shutdown()
        #expect(try harness.end() == .clientDisconnected)
    }

    @Test("a client that does not read its replies is disconnected")
    func doesNotRead() throws {
        let request = WireMessage(
            id: 1, command: 9, payload: WireMessage.region(0, offset: 0, count: 1 << 20)
        ).bytes
        var sent = 0
        while harness.ends.isEmpty, sent < 100 {
            if try harness.client.sendSome(request) != nil { sent += 1 }
            try harness.runUntilIdle()
        }
        #expect(harness.ends == [.clientStoppedReading])
        #expect(sent < 10)
    }

    @Test("waiting replies are sent when the client reads again")
    func readsLate() throws {
        let request = WireMessage(
            id: 1, command: 9, payload: WireMessage.region(0, offset: 0, count: 1 << 20))
        try harness.client.send(request)
        try harness.client.send(request)
        try harness.runUntilIdle()
        for _ in 0..<2 {
            #expect(try harness.client.receiveMessage().size == 32 + 1 << 20)
        }
        #expect(try harness.isAlive())
    }

    @Test("close() ends the connection, and the end is reported once, on the loop")
    func close() throws {
        harness.connection?.close()
        harness.connection?.close()
        #expect(harness.ends.isEmpty)
        #expect(try harness.end() == .closedByServer)
        #expect(try harness.client.isClosedByServer())
        try harness.runUntilIdle()
        #expect(harness.ends.count == 1)
    }

    @Test("a device may close the connection while it handles a request")
    func closeWithin() throws {
        device.whileReading = { [harness] in harness.connection?.close() }
        try harness.client.send(read + read + read)
        #expect(try harness.end() == .closedByServer)
    }

    // MARK: - Descriptors

    private func map(_ address: UInt64) -> WireMessage {
        WireMessage(
            id: 2, command: 2,
            payload: WireMessage.dmaMap(flags: 3, offset: 0, address: address, size: 0x1000))
    }

    @Test("a descriptor belongs to the message it was sent with, not to those received before it")
    func attachment() throws {
        let memory = try SharedMemory(size: 4096)
        try harness.client.send(map(0x1000).bytes)
        try harness.client.send(map(0x2000).bytes, descriptors: [memory.descriptor])
        try harness.client.send(map(0x3000).bytes)
        try harness.client.send(read)
        for _ in 0..<4 { #expect(try !harness.client.receiveMessage().isError) }
        #expect(device.maps.map(\.hasFile) == [false, true, false])
    }

    @Test(
        "a descriptor that comes with the first bytes of a message belongs to it",
        arguments: [1, 15, 16, 17, 47])
    func splitAttachment(cut: Int) throws {
        let memory = try SharedMemory(size: 4096)
        let bytes = map(0x2000).bytes
        try harness.client.send(Array(bytes[..<cut]), descriptors: [memory.descriptor])
        try harness.runUntilIdle()
        try harness.client.send(Array(bytes[cut...]) + map(0x3000).bytes)
        for _ in 0..<2 { #expect(try !harness.client.receiveMessage().isError) }
        #expect(device.maps.map(\.hasFile) == [true, false])
    }

    @Test(
        "a descriptor that comes with later bytes of a message belongs to it",
        arguments: [1, 16, 40])
    func lateAttachment(cut: Int) throws {
        let memory = try SharedMemory(size: 4096)
        let bytes = map(0x2000).bytes
        for isDelivered in [true, false] {
            try harness.client.send(Array(bytes[..<cut]))
            if isDelivered { try harness.runUntilIdle() }
            try harness.client.send(Array(bytes[cut...]), descriptors: [memory.descriptor])
            #expect(try !harness.client.receiveMessage().isError)
            #expect(device.maps.last?.hasFile == true)
            device.maps = []
        }
    }

    @Test("of messages sent together, the one that takes descriptors gets them")
    func joinedAttachment() throws {
        let memory = try SharedMemory(size: 4096)
        try harness.client.send(
            read + map(0x1000).bytes + read, descriptors: [memory.descriptor])
        for _ in 0..<3 { #expect(try !harness.client.receiveMessage().isError) }
        #expect(device.maps.map(\.hasFile) == [true])
    }

    @Test("two messages get their descriptors although the first is received in parts")
    func twoAttachments() throws {
        let memory = try SharedMemory(size: 4096)
        let first = map(0x1000).bytes
        try harness.client.send(Array(first[..<20]), descriptors: [memory.descriptor])
        try harness.runUntilIdle()
        try harness.client.send(Array(first[20...]))
        try harness.client.send(map(0x2000).bytes, descriptors: [memory.descriptor])
        for _ in 0..<2 { #expect(try !harness.client.receiveMessage().isError) }
        #expect(device.maps.map(\.hasFile) == [true, true])
    }

    @Test(
        "descriptors of a command that takes none are closed, and the request is answered",
        arguments: [3, 4, 5, 7, 9, 10, 13, 16, 99])
    func unwanted(command: UInt16) throws {
        let detector = try TestPipe()
        _ = try harness.client.request(
            command, [UInt8](repeating: 0, count: 32), descriptors: [detector.writeNumber])
        #expect(try detector.areCopiesClosed())
        #expect(try harness.isAlive())
    }

    @Test("sixteen descriptors are accepted, more are refused and closed", arguments: [16, 17, 64])
    func count(count: Int) throws {
        let detector = try TestPipe()
        let reply = try harness.client.request(
            8,
            WireMessage.setIRQs(
                flags: IRQSet.dataEventFD | IRQSet.trigger, index: 2, start: 0,
                count: UInt32(min(count, 20))),
            descriptors: [CInt](repeating: detector.writeNumber, count: count))
        #expect(reply.isError == (count > 16))
        if count > 16 {
            #expect(reply.error == 22)
            #expect(try detector.areCopiesClosed())
        } else {
            #expect(device.events[2].filter { $0 != nil }.count == 16)
        }
        #expect(try harness.isAlive())
    }

    @Test("a message received in parts has at most sixteen descriptors")
    func countInParts() throws {
        let detectors = try (0..<18).map { _ in try TestPipe() }
        for (byte, detector) in zip(map(0x1000).bytes, detectors) {
            try harness.client.send([byte], descriptors: [detector.writeNumber])
        }
        try harness.runUntilIdle()
        #expect(try detectors[16].areCopiesClosed())
        #expect(try detectors[17].areCopiesClosed())
        #expect(try !detectors[15].areCopiesClosed(within: .zero))
        try harness.client.send(Array(map(0x1000).bytes.dropFirst(18)))
        #expect(try harness.client.receiveMessage().isError)
        #expect(try detectors[0].areCopiesClosed())
    }

    @Test("descriptors of replies are closed although the next message is incomplete")
    func repliesBefore() throws {
        let detector = try TestPipe()
        let reply = WireMessage(id: 1, command: 9, flags: WireMessage.reply).bytes
        try harness.client.send(Array(reply.dropLast()), descriptors: [detector.writeNumber])
        try harness.runUntilIdle()
        try harness.client.send([reply[reply.count - 1]] + map(0x1000).bytes.prefix(20))
        try harness.runUntilIdle()
        #expect(try detector.areCopiesClosed())
        try harness.client.send(Array(map(0x1000).bytes.dropFirst(20)))
        #expect(try !harness.client.receiveMessage().isError)
    }

    @Test("descriptors of a reply and of an incomplete message are closed")
    func leftOver() throws {
        let detector = try TestPipe()
        try harness.client.send(
            WireMessage(id: 1, command: 9, flags: WireMessage.reply).bytes,
            descriptors: [detector.writeNumber])
        #expect(try harness.isAlive())
        #expect(try detector.areCopiesClosed())

        let second = try TestPipe()
        try harness.client.send(
            Array(map(0x1000).bytes.dropLast()), descriptors: [second.writeNumber])
        try harness.runUntilIdle()
        #expect(try !second.areCopiesClosed(within: .zero))
        harness.client.close()
        #expect(try harness.end() == .clientDisconnected)
        #expect(try second.areCopiesClosed())
    }
}
