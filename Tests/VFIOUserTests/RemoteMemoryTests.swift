// SPDX-License-Identifier: Apache-2.0

import Platform
import SystemPackage
import TestKit
import Testing
import VFIOClient

@testable import VFIOUser

/// Accesses to guest memory block the server, so the client runs on a thread of its own; the test's
/// thread runs the server.
@Suite("guest memory by messages")
struct RemoteMemoryTests {
    /// A flag that one thread sets and another reads.
    final class Flag: Sendable {
        private let value = Locked(false)

        var isSet: Bool { value.withLock { $0 } }

        func set() { value.withLock { $0 = true } }
    }

    static let base: UInt64 = 0x1_0000_0000
    static let size = 3 << 20
    static let pattern = (0..<size).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }

    let loop: EpollLoop
    let device = TestDevice()

    init() throws { loop = try EpollLoop() }

    /// Connects a QEMU client whose memory has no descriptor and holds the pattern. The client
    /// serves its memory on a thread until `body` returns.
    private func withQEMU(
        dataOffset: Int = 28,
        whileRunning: @escaping @Sendable (QEMUClient) throws -> Void = { _ in },
        _ body: (Connection) throws -> Void
    ) throws {
        try withClient { wire, stop in
            let memory = try SharedMemory(size: Self.size)
            memory.write(Self.pattern, at: 0)
            let client = QEMUClient(
                wire: wire, memory: [.init(address: Self.base, contents: memory, isShared: false)])
            client.dataOffset = dataOffset
            try client.start()
            try whileRunning(client)
            while !stop.isSet {
                try client.serveMemory()
                try wire.wait(for: .readable)
            }
        } _: { connection throws in
            while device.maps.isEmpty { try loop.turn(until: loop.now + .milliseconds(5)) }
            try body(connection)
        }
    }

    private func withClient(
        _ client: @escaping @Sendable (WireClient, Flag) throws -> Void,
        _ body: (Connection) throws -> Void
    ) throws {
        var numbers: [CInt] = [-1, -1]
        try SocketPair.make(&numbers)
        let (number, stop) = (numbers[0], Flag())
        let connection = try Connection(
            socket: OwnedDescriptor(owning: numbers[1]), device: device, loop: loop, logger: .silent
        ) { _ in }
        // Long enough for all accesses of a test; tests of the timeout set a shorter one.
        connection.memoryAccessTimeout = .seconds(100)
        let thread = ClientThread {
            try client(WireClient(socket: OwnedDescriptor(owning: number)), stop)
        }
        let result = Result { try body(connection) }
        stop.set()
        try thread.join(loop)
        try result.get()
        connection.close()
        try loop.turn(until: loop.now)
    }

    private func read(_ connection: Connection, _ count: Int, at offset: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xaa, count: count)
        try bytes.withUnsafeMutableBytes {
            try connection.readMemory(into: $0, at: Self.base &+ UInt64(bitPattern: Int64(offset)))
        }
        return bytes
    }

    private func write(_ connection: Connection, _ bytes: [UInt8], at offset: Int) throws {
        try bytes.withUnsafeBytes {
            try connection.writeMemory($0, at: Self.base &+ UInt64(bitPattern: Int64(offset)))
        }
    }

    @Test(
        "guest memory is read and written in both layouts",
        arguments: [28, 32])
    func readAndWrite(dataOffset: Int) throws {
        try withQEMU(dataOffset: dataOffset) { connection throws in
            for (count, offset) in [(1, 5), (4, 0), (16, 0x1003), (4096, 0x2000), (0, 0)] {
                #expect(
                    try read(connection, count, at: offset)
                        == Array(Self.pattern[offset..<offset + count]))
                let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &+ 1) }
                try write(connection, bytes, at: offset)
                #expect(try read(connection, count, at: offset) == bytes)
            }
            #expect(connection.memoryLayout == (dataOffset == 28 ? .qemu : .document))
        }
    }

    @Test("the layout is probed when the first access is a write", arguments: [28, 32])
    func writeFirst(dataOffset: Int) throws {
        try withQEMU(dataOffset: dataOffset) { connection throws in
            try write(connection, [1, 2, 3, 4, 5, 6, 7, 8], at: 0x100)
            #expect(
                try read(connection, 10, at: 0xff)
                    == [Self.pattern[0xff], 1, 2, 3, 4, 5, 6, 7, 8, Self.pattern[0x108]])
        }
    }

    @Test(
        "data that is ambiguous between the layouts is not shifted",
        arguments: [28, 32])
    func ambiguous(dataOffset: Int) throws {
        let data: [UInt8] = [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0]
        try withClient { wire, stop in
            let memory = try SharedMemory(size: 4096)
            memory.write(data, at: 64)
            let client = QEMUClient(
                wire: wire, memory: [.init(address: Self.base, contents: memory, isShared: false)])
            client.dataOffset = dataOffset
            try client.start()
            while !stop.isSet {
                try client.serveMemory()
                try wire.wait(for: .readable)
            }
        } _: { connection throws in
            while device.maps.isEmpty { try loop.turn(until: loop.now + .milliseconds(5)) }
            // Zeroes are the same in both layouts, so no probe is sent.
            #expect(try read(connection, 16, at: 0) == [UInt8](repeating: 0, count: 16))
            #expect(connection.memoryLayout == nil)
            #expect(try read(connection, 16, at: 64) == data)
            #expect(connection.memoryLayout == (dataOffset == 28 ? .qemu : .document))
        }
    }

    @Test("an access longer than one message is split", arguments: [28, 32])
    func long(dataOffset: Int) throws {
        try withQEMU(dataOffset: dataOffset) { connection throws in
            let count = 2 * VFIOUserLimits.dataTransfer + 5
            #expect(try read(connection, count, at: 3) == Array(Self.pattern[3..<3 + count]))
            let bytes = [UInt8](Self.pattern[..<count].reversed())
            try write(connection, bytes, at: 1)
            #expect(try read(connection, count, at: 1) == bytes)
        }
    }

    @Test("the client's refusal is an error, and later accesses succeed")
    func refused() throws {
        try withQEMU { connection throws in
            #expect(throws: Errno.operationNotSupportedByDevice) {
                try read(connection, 4, at: Self.size)
            }
            #expect(throws: Errno.operationNotSupportedByDevice) {
                try write(connection, [1], at: -1)
            }
            #expect(try read(connection, 4, at: 0) == Array(Self.pattern[..<4]))
        }
    }

    // QEMU replies to no request while a processor waits for a register access, so the server must
    // answer that first.
    @Test("register accesses are handled while a memory access waits")
    func servesMeanwhile() throws {
        try withQEMU { client in
            // The client does not reply to the server's request meanwhile.
            try client.awaitRequest()
            for value in UInt32(1)...50 {
                try client.writeRegister(0x10, value)
                guard try client.readRegister(0x10, as: UInt32.self) == value else {
                    throw WireClient.Failure("a wrong register")
                }
            }
        } _: { connection throws in
            for _ in 0..<50 {
                #expect(try read(connection, 64, at: 64) == Array(Self.pattern[64..<128]))
            }
            #expect(device.writes.count == 50)
        }
    }

    @Test("memory is mapped and unmapped while an access waits")
    func mapsMeanwhile() throws {
        try withQEMU { client in
            let other = try SharedMemory(size: 4096)
            try client.awaitRequest()
            try client.add(.init(address: 0x1000, contents: other, isShared: false))
            try client.remove(address: 0x1000)
        } _: { connection throws in
            #expect(try read(connection, 64, at: 64) == Array(Self.pattern[64..<128]))
            #expect(device.maps.count == 1)
        }
    }

    @Test("DEVICE_RESET cancels a waiting access and is handled in the next turn of the loop")
    func resetMeanwhile() throws {
        try withQEMU { client in
            try client.awaitRequest()
            try client.reset()
            guard try client.readRegister(0x10, as: UInt32.self) == 0 else {
                throw WireClient.Failure("a wrong register")
            }
        } _: { connection throws in
            #expect(throws: Errno.canceled) { try read(connection, 64, at: 64) }
            // DEVICE_RESET waits until the access has returned.
            #expect(device.resets == 0)
            #expect(throws: Errno.canceled) { try write(connection, [1], at: 0) }
            while device.resets == 0 { try loop.turn(until: loop.now + .milliseconds(5)) }
            #expect(try read(connection, 64, at: 64) == Array(Self.pattern[64..<128]))
        }
    }

    @Test("DMA_UNMAP during an access is answered at once, and the access continues")
    func unmapMeanwhile() throws {
        try withQEMU { client in
            try client.awaitRequest()
            try client.remove(address: Self.base)
        } _: { connection throws in
            #expect(throws: Errno.operationNotSupportedByDevice) {
                try read(connection, 64, at: 64)
            }
        }
    }

    @Test("an access fails when the client disconnects")
    func disconnectsMeanwhile() throws {
        try withClient { wire, _ in
            let client = QEMUClient(wire: wire, memory: [])
            try client.start()
            try client.awaitRequest()
            client.kill()
        } _: { connection throws in
            while !connection.servesMemory { try loop.turn(until: loop.now + .milliseconds(5)) }
            #expect(throws: Errno.socketNotConnected) { try read(connection, 64, at: 64) }
            #expect(throws: Errno.socketNotConnected) { try read(connection, 64, at: 64) }
        }
    }

    @Test("after a timeout accesses fail at once until the late reply arrives")
    func silent() throws {
        let answers = Flag()
        try withClient { wire, stop in
            let memory = try SharedMemory(size: 4096)
            let client = QEMUClient(
                wire: wire, memory: [.init(address: Self.base, contents: memory, isShared: false)])
            try client.start()
            while !stop.isSet {
                client.ignoresRequests = !answers.isSet
                try client.serveMemory()
                try wire.wait(for: .readable)
            }
        } _: { connection throws in
            while device.maps.isEmpty { try loop.turn(until: loop.now + .milliseconds(5)) }
            connection.memoryAccessTimeout = .milliseconds(50)
            let start = loop.now
            #expect(throws: Errno.timedOut) { try read(connection, 4, at: 0) }
            #expect(loop.now - start >= .milliseconds(50))
            connection.memoryAccessTimeout = .seconds(100)
            #expect(throws: Errno.timedOut) { try read(connection, 4, at: 0) }
            answers.set()
            while connection.timedOutRequest != nil {
                try loop.turn(until: loop.now + .milliseconds(5))
            }
            #expect(try read(connection, 4, at: 0) == [0, 0, 0, 0])
        }
    }

    @Test("all accesses in one turn of the loop share one timeout")
    func sharedTime() throws {
        try withQEMU { connection throws in
            _ = try read(connection, 4, at: 0)
            #expect(try #require(connection.accessDeadline) > loop.now)
            connection.accessDeadline = loop.now
            #expect(throws: Errno.timedOut) { try read(connection, 4, at: 0) }
            #expect(throws: Errno.timedOut) { try write(connection, [1], at: 0) }
            #expect(connection.timedOutRequest == nil, "a request was sent")
            try loop.turn(until: loop.now)
            #expect(try read(connection, 1, at: 0) == [Self.pattern[0]])
        }
    }

    @Test("a client that cannot serve memory is sent no request")
    func cloudHypervisor() throws {
        try withClient { wire, _ in
            let client = CloudHypervisorClient(wire: wire, memory: [])
            try client.start()
            try client.writeRegister(0, UInt32(1))
            // The client takes any message for the reply to its request.
            guard try client.readRegister(0, as: UInt32.self) == 1 else {
                throw WireClient.Failure("a wrong register")
            }
        } _: { connection throws in
            while device.writes.isEmpty {
                #expect(throws: Errno.notSupported) { try read(connection, 4, at: 0) }
                #expect(throws: Errno.notSupported) { try write(connection, [1], at: 0) }
                try loop.turn(until: loop.now + .milliseconds(5))
            }
        }
    }

    struct BadAnswer: CustomStringConvertible, Sendable {
        let description: String
        let error: Errno
        let answer: @Sendable (WireMessage) -> WireMessage
    }

    static let badAnswers = [
        BadAnswer(description: "too short", error: .ioError) { request in
            WireMessage(
                id: request.id, command: request.command, flags: WireMessage.reply,
                payload: [UInt8](repeating: 1, count: 31))
        },
        BadAnswer(description: "empty", error: .ioError) { request in
            WireMessage(id: request.id, command: request.command, flags: WireMessage.reply)
        },
        BadAnswer(description: "an error without errno", error: .ioError) { request in
            WireMessage(
                id: request.id, command: request.command,
                flags: WireMessage.reply | WireMessage.error)
        },
        BadAnswer(description: "an errno that readMemory uses itself", error: .ioError) {
            request in
            WireMessage(
                id: request.id, command: request.command,
                flags: WireMessage.reply | WireMessage.error, error: 125)
        },
        BadAnswer(description: "an error", error: .permissionDenied) { request in
            WireMessage(
                id: request.id, command: request.command,
                flags: WireMessage.reply | WireMessage.error, error: 13)
        },
    ]

    @Test("a malformed reply fails one access only", arguments: badAnswers)
    func badAnswer(_ bad: BadAnswer) throws {
        try withClient { wire, _ in
            let client = QEMUClient(wire: wire, memory: [])
            try client.start()
            try wire.send(bad.answer(try client.awaitRequest()))
            _ = try client.readRegister(0, as: UInt32.self)
        } _: { connection throws in
            while !connection.servesMemory { try loop.turn(until: loop.now + .milliseconds(5)) }
            #expect(throws: bad.error) { try read(connection, 16, at: 0) }
        }
    }

    @Test("an access while a request is handled is refused")
    func withinRequest() throws {
        var error: Errno?
        try withQEMU { client in
            _ = try client.readRegister(0, as: UInt32.self)
        } _: { connection throws in
            device.whileReading = {
                do {
                    _ = try read(connection, 1, at: 0)
                } catch let thrown {
                    error = thrown as? Errno
                }
            }
            while error == nil { try loop.turn(until: loop.now + .milliseconds(5)) }
            #expect(error == .resourceBusy)
            device.whileReading = nil
            #expect(try read(connection, 4, at: 0) == Array(Self.pattern[..<4]))
        }
    }

    @Test("a nested access is refused")
    func nested() throws {
        var error: Errno?
        try withQEMU { client in
            try client.awaitRequest()
            _ = try client.readRegister(0, as: UInt32.self)
        } _: { connection throws in
            device.whileReading = {
                device.whileReading = nil
                do {
                    _ = try read(connection, 1, at: 0)
                } catch let thrown {
                    error = thrown as? Errno
                }
            }
            #expect(try read(connection, 4, at: 0) == Array(Self.pattern[..<4]))
            #expect(error == .resourceBusy)
        }
    }
}
