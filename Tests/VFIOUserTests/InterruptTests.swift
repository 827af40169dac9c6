// SPDX-License-Identifier: Apache-2.0

import Platform
import TestKit
import Testing
import VFIOClient
import VFIOUser

@Suite("DEVICE_SET_IRQS")
struct InterruptTests {
    let harness: Harness
    var device: TestDevice { harness.device }
    var connected: [Int] {
        device.events[2].indices.filter { device.events[2][$0] != nil }
    }

    init() throws { harness = try Harness.ready() }

    private func set(
        _ flags: UInt32, index: UInt32 = 2, start: UInt32 = 0, count: UInt32, data: [UInt8] = [],
        descriptors: [CInt] = []
    ) throws -> UInt32 {
        let reply = try harness.client.request(
            8,
            WireMessage.setIRQs(flags: flags, index: index, start: start, count: count, data: data),
            descriptors: descriptors)
        #expect(reply.size == 16)
        #expect(reply.isError == (reply.error != 0))
        return reply.error
    }

    @Test("an eventfd is connected and signalled")
    func connect() throws {
        let event = try EventFD()
        try harness.client.send(
            hex(
                """
                0c00 0800 24000000 00000000 00000000  # number 12, SET_IRQS, 36 bytes
                14000000 24000000 02000000            # argsz 20, EVENTFD and TRIGGER, MSI-X
                03000000 01000000                     # vector 3, one of them
                """), descriptors: [event.descriptor])
        try harness.runUntilIdle()
        #expect(
            try harness.client.receiveSome(99) == hex("0c00 0800 10000000 01000000 00000000"))
        device.events[2][3]?.signal()
        device.events[2][3]?.signal()
        #expect(event.take() == 2)
    }

    @Test("the eventfds of one message are connected in order", arguments: [1, 2, 16])
    func several(count: Int) throws {
        let events = try (0..<count).map { _ in try EventFD() }
        #expect(
            try set(
                IRQSet.dataEventFD | IRQSet.trigger, start: 4, count: UInt32(count),
                descriptors: events.map(\.descriptor)) == 0)
        #expect(connected == Array(4..<4 + count))
        for index in 0..<count {
            device.events[2][4 + index]?.signal()
            #expect(events.map { $0.take() } == (0..<count).map { $0 == index ? 1 : 0 })
        }
    }

    @Test("the last vector is connected, the one behind it is refused")
    func lastVector() throws {
        let event = try EventFD()
        let flags = IRQSet.dataEventFD | IRQSet.trigger
        #expect(try set(flags, start: 19, count: 1, descriptors: [event.descriptor]) == 0)
        #expect(connected == [19])
        #expect(try set(flags, start: 20, count: 1, descriptors: [event.descriptor]) == 22)
        #expect(
            try set(
                flags, start: 19, count: 2, descriptors: [event.descriptor, event.descriptor])
                == 22)
        #expect(try set(flags, start: .max, count: .max, descriptors: []) == 22)
    }

    @Test("EVENTFD without descriptors disconnects the vectors")
    func disconnect() throws {
        let events = try (0..<4).map { _ in try EventFD() }
        let flags = IRQSet.dataEventFD | IRQSet.trigger
        #expect(try set(flags, count: 4, descriptors: events.map(\.descriptor)) == 0)
        #expect(try set(flags, start: 1, count: 2) == 0)
        #expect(connected == [0, 3])
    }

    @Test("a count of 0 disconnects all vectors")
    func disableAll() throws {
        let event = try EventFD()
        let flags = IRQSet.dataEventFD | IRQSet.trigger
        #expect(try set(flags, start: 2, count: 1, descriptors: [event.descriptor]) == 0)
        #expect(try set(flags, start: 7, count: 1, descriptors: [event.descriptor]) == 0)
        #expect(try set(IRQSet.dataNone | IRQSet.trigger, count: 0) == 0)
        #expect(connected.isEmpty)
    }

    @Test("a count of 0 is refused with any other flags or start")
    func zeroCount() throws {
        for data in [IRQSet.dataBool, IRQSet.dataEventFD] {
            for action in [IRQSet.mask, IRQSet.unmask, IRQSet.trigger] {
                #expect(try set(data | action, count: 0) == 22)
            }
        }
        #expect(try set(IRQSet.dataNone | IRQSet.mask, count: 0) == 22)
        #expect(try set(IRQSet.dataNone | IRQSet.trigger, start: 1, count: 0) == 22)
    }

    @Test("an action applies to all vectors of the range")
    func actions() throws {
        #expect(try set(IRQSet.dataNone | IRQSet.mask, start: 1, count: 2) == 0)
        #expect(try set(IRQSet.dataNone | IRQSet.unmask, start: 2, count: 1) == 0)
        #expect(try set(IRQSet.dataNone | IRQSet.trigger, start: 0, count: 1) == 0)
        #expect(
            device.changes == [
                .init(index: 2, vector: 1, action: .mask),
                .init(index: 2, vector: 2, action: .mask),
                .init(index: 2, vector: 2, action: .unmask),
                .init(index: 2, vector: 0, action: .trigger),
            ])
    }

    @Test("booleans select the vectors")
    func booleans() throws {
        for action in [IRQSet.mask, IRQSet.unmask, IRQSet.trigger] {
            #expect(try set(IRQSet.dataBool | action, start: 1, count: 4, data: [0, 1, 0, 2]) == 0)
        }
        #expect(device.changes.map(\.vector) == [2, 4, 2, 4, 2, 4])
        #expect(
            device.changes.map(\.action) == [.mask, .mask, .unmask, .unmask, .trigger, .trigger])
    }

    @Test("fewer booleans than vectors are refused")
    func fewBooleans() throws {
        #expect(try set(IRQSet.dataBool | IRQSet.mask, count: 3, data: [1, 1]) == 22)
        #expect(try set(IRQSet.dataBool | IRQSet.mask, count: 3, data: [1, 1, 1]) == 0)
        #expect(device.changes.count == 3)
    }

    @Test("an interrupt type that is not maskable refuses masking")
    func notMaskable() throws {
        #expect(try set(IRQSet.dataNone | IRQSet.mask, index: 1, count: 1) == 95)
        #expect(try set(IRQSet.dataNone | IRQSet.trigger, index: 1, count: 1) == 0)
        #expect(device.changes == [.init(index: 1, vector: 0, action: .trigger)])
    }

    @Test("eventfds that mask or unmask are not supported")
    func maskEvents() throws {
        let event = try EventFD()
        for action in [IRQSet.mask, IRQSet.unmask] {
            #expect(
                try set(IRQSet.dataEventFD | action, count: 1, descriptors: [event.descriptor])
                    == 95)
        }
        #expect(connected.isEmpty)
    }

    @Test(
        "flags without exactly one data type and one action are refused",
        arguments: [
            0, IRQSet.dataNone, IRQSet.trigger, IRQSet.dataNone | IRQSet.dataBool | IRQSet.mask,
            IRQSet.dataNone | IRQSet.mask | IRQSet.unmask, UInt32.max,
            IRQSet.dataNone | IRQSet.trigger | 1 << 6, IRQSet.dataNone | IRQSet.trigger | 1 << 31,
        ])
    func flags(flags: UInt32) throws {
        #expect(try set(flags, count: 1, data: [1]) == 22)
        #expect(device.changes.isEmpty)
    }

    @Test("an absent interrupt type is refused", arguments: [0, 3, 5, UInt32.max])
    func absentType(index: UInt32) throws {
        #expect(try set(IRQSet.dataNone | IRQSet.trigger, index: index, count: 1) == 22)
    }

    @Test(
        "a number of descriptors other than the count is refused, and they are closed",
        arguments: [1, 2, 4])
    func mismatch(count: UInt32) throws {
        let detector = try TestPipe()
        let number = detector.writeNumber
        #expect(
            try set(
                IRQSet.dataEventFD | IRQSet.trigger, count: count,
                descriptors: [number, number, number]) == 22)
        #expect(connected.isEmpty)
        #expect(try detector.areCopiesClosed())
    }

    @Test("descriptors without EVENTFD are refused and closed")
    func unwanted() throws {
        let detector = try TestPipe()
        #expect(
            try set(
                IRQSet.dataNone | IRQSet.trigger, count: 1, descriptors: [detector.writeNumber])
                == 22)
        #expect(device.changes.isEmpty)
        #expect(try detector.areCopiesClosed())
    }

    @Test("a short message is refused")
    func tooShort() throws {
        let reply = try harness.client.request(8, [UInt8](repeating: 0, count: 19))
        #expect(reply.isError && reply.error == 22)
    }

    @Test("the eventfd of a vector is closed when it is disconnected or replaced")
    func closes() throws {
        let first = try TestPipe()
        let second = try TestPipe()
        let flags = IRQSet.dataEventFD | IRQSet.trigger
        #expect(try set(flags, count: 1, descriptors: [first.writeNumber]) == 0)
        #expect(try set(flags, count: 1, descriptors: [second.writeNumber]) == 0)
        #expect(try first.areCopiesClosed())
        #expect(try !second.areCopiesClosed(within: .zero))
        #expect(try set(flags, count: 1) == 0)
        #expect(try second.areCopiesClosed())
    }
}
