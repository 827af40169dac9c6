// SPDX-License-Identifier: Apache-2.0

import SystemPackage
import Testing
import USB

@testable import MassStorage

/// USB Attached SCSI: commands under tags, with streams and without.
@Suite struct UASTests {
    private let image = FakeImage(byteCount: 1 << 20)
    private let pattern = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 / 512 &+ $0) }
    private let inquiry: [UInt8] = [0x12, 0, 0, 0, 36, 0]

    init() { image.fill(at: 0, pattern) }

    private func uas(streams: Int = 32) throws -> UASHost { try UASHost(image, streams: streams) }

    private static func read(_ block: UInt8, _ count: UInt8) -> [UInt8] {
        [0x28, 0, 0, 0, 0, block, 0, 0, count, 0]
    }

    private static func write(_ block: UInt8, _ count: UInt8) -> [UInt8] {
        [0x2a, 0, 0, 0, 0, block, 0, 0, count, 0]
    }

    private func bytes(_ block: Int, _ count: Int) -> [UInt8] {
        Array(pattern[block * 512..<(block + count) * 512])
    }

    private var contents: [UInt8] { image.bytes(at: 0, count: pattern.count) }

    /// Blocks move one by one, and some fail.
    private func fail(_ fault: @escaping @Sendable (FakeImage.Operation) -> Errno?) {
        image.set {
            $0.largestAccess = 512
            $0.fault = fault
        }
    }

    private func expectOperational(_ uas: UASHost) {
        #expect(uas.run(Self.read(3, 2), in: 1024) == (.good, bytes(3, 2)))
        #expect(uas.host.port.doubles.isEmpty)
    }

    // MARK: - Descriptors

    @Test(arguments: [USBSpeed.high, .superSpeed])
    func `UAS is a second setting, for hosts that know it`(speed: USBSpeed) throws {
        let host = try BulkOnlyHost(image, speed: speed, offersUAS: true)
        let bytes = host.control(0x80, 6, value: 0x0200, length: 0xffff).bytes
        var descriptors: [[UInt8]] = []
        var rest = bytes[...]
        while let length = rest.first, length > 0 {
            descriptors.append(Array(rest.prefix(Int(length))))
            rest = rest.dropFirst(Int(length))
        }
        let interfaces = descriptors.filter { $0[1] == 4 }
        #expect(interfaces.map { $0[3] } == [0, 1])
        #expect(interfaces.map { Array($0[5...7]) } == [[8, 6, 0x50], [8, 6, 0x62]])
        #expect(interfaces.map { $0[4] } == [2, 4])
        // Which endpoint is which, and that streams are there where they are needed.
        #expect(descriptors.filter { $0[1] == 0x24 }.map { $0[2] } == [1, 2, 3, 4])
        #expect(
            descriptors.filter { $0[1] == 5 }.map { $0[2] } == [0x81, 2, 4, 0x83, 0x81, 2])
        if speed.isSuperSpeed {
            #expect(descriptors.filter { $0[1] == 48 }.map { $0[3] } == [0, 0, 0, 5, 5, 5])
        }
        #expect(bytes.count == Int(bytes[2]) | Int(bytes[3]) << 8)
    }

    @Test func `a stick without UAS has one setting`() throws {
        let host = try BulkOnlyHost(image)
        #expect(host.control(0x01, 11, value: 1).status == .stalled)
        #expect(host.control(0x80, 6, value: 0x0200, length: 0xffff).bytes.count == 9 + 9 + 2 * 13)
    }

    @Test func `a host goes to UAS and back`() throws {
        let uas = try uas()
        expectOperational(uas)
        let waiting = uas.status(7)
        uas.host.control(0x01, 11, value: 0)
        // The status pipe is no more.
        #expect(uas.host.port.completions[waiting]?.status == .failed)
        #expect(uas.host.run(Self.read(0, 1), in: 512).data == bytes(0, 1))
        #expect(uas.host.control(0xa1, 0xfe, length: 1).bytes == [0])
        uas.choose()
        #expect(uas.host.control(0xa1, 0xfe, length: 1).status == .stalled)
        expectOperational(uas)
    }

    // MARK: - Commands

    @Test(arguments: [32, 0])
    func `blocks are read and written`(streams: Int) throws {
        let uas = try uas(streams: streams)
        #expect(uas.run(Self.read(8, 16), in: 8192) == (.good, bytes(8, 16)))
        let data = [UInt8](repeating: 0x5a, count: 8192)
        #expect(uas.run(Self.write(8, 16), out: data).0 == .good)
        #expect(uas.run(Self.read(8, 16), in: 8192) == (.good, data))
        // Less than there is room for: a short packet.
        let (answer, told) = uas.run(inquiry, in: 255)
        #expect(answer == .good)
        #expect(told.count == 36)
        #expect(uas.run([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).0 == .good)
        #expect(image.flushCount == 1)
    }

    @Test(arguments: [32, 0])
    func `an error tells why with the status`(streams: Int) throws {
        let uas = try uas(streams: streams)
        #expect(uas.run([0xff, 0, 0, 0, 0, 0]).0 == .checkCondition(key: 5, code: 0x2000))
        // It is told once: there is nothing left to ask for.
        let (answer, sense) = uas.run([0x03, 0, 0, 0, 18, 0], in: 18)
        #expect(answer == .good)
        #expect(sense[2] == 0)
        fail { if case .read(5 * 512, _) = $0 { .ioError } else { nil } }
        let (failed, data) = uas.run(Self.read(4, 4), in: 2048)
        #expect(failed == .checkCondition(key: 3, code: 0x1100))
        #expect(data == bytes(4, 1))
        expectOperational(uas)
    }

    @Test func `a write that fails is told, and the host may send it again`() throws {
        let uas = try uas()
        fail { if case .write(10 * 512, _, _) = $0 { .noSpace } else { nil } }
        let data = [UInt8](repeating: 1, count: 2048)
        #expect(uas.run(Self.write(9, 4), out: data).0 == .checkCondition(key: 7, code: 0x2707))
        image.set { $0.fault = { _ in nil } }
        #expect(uas.run(Self.write(9, 4), out: data).0 == .good)
        #expect(Array(contents[9 * 512..<13 * 512]) == data)
        expectOperational(uas)
    }

    @Test func `many commands are carried out in the order in which they came`() throws {
        let uas = try uas()
        // Each overwrites what the one before it wrote.
        let writes = (0..<16).map { index in
            uas.submit(Self.write(2, 1), out: [UInt8](repeating: UInt8(index), count: 512))
        }
        let read = uas.submit(Self.read(2, 1), in: 512)
        #expect(uas.answer(read) == .good)
        for write in writes { #expect(uas.answer(write) == .good) }
        #expect(read.data.map { uas.host.bytes($0) } == [UInt8](repeating: 15, count: 512))
    }

    @Test func `a slow disk keeps the order`() throws {
        let uas = try uas()
        image.set { $0.nonblocking = .wouldBlock }
        let first = uas.submit(Self.write(2, 1), out: [UInt8](repeating: 1, count: 512))
        let second = uas.submit(Self.write(2, 1), out: [UInt8](repeating: 2, count: 512))
        let third = uas.submit(Self.read(2, 1), in: 512)
        #expect(uas.answer(third) == .good)
        #expect(uas.answer(first) == .good)
        #expect(uas.answer(second) == .good)
        #expect(third.data.map { uas.host.bytes($0) } == [UInt8](repeating: 2, count: 512))
    }

    @Test func `data and status wait for their transfers, in whatever order these come`() throws {
        let uas = try uas()
        uas.request(UASHost.command(Self.read(1, 4), 5))
        uas.request(UASHost.command(inquiry, 6))
        let wrong = uas.data(in: 1024, 6)
        let status = uas.status(5)
        #expect(!uas.host.isDone(wrong))
        let first = uas.data(in: 1024, 5)
        #expect(!uas.host.isDone(status))
        let second = uas.data(in: 1024, 5)
        #expect(uas.host.bytes(first) + uas.host.bytes(second) == bytes(1, 4))
        #expect(uas.answer(status, tag: 5) == .good)
        #expect(uas.host.bytes(wrong).count == 36)
        #expect(uas.answer(uas.status(6), tag: 6) == .good)
    }

    @Test func `a command at the head of the queue overtakes those that wait`() throws {
        let uas = try uas()
        uas.request(UASHost.command(Self.read(1, 1), 1))
        uas.request(UASHost.command(inquiry, 2))
        uas.request(UASHost.command([0, 0, 0, 0, 0, 0], 3, attribute: 1))
        let (second, third) = (uas.status(2), uas.status(3))
        _ = uas.data(in: 512, 1)
        #expect(uas.answer(third, tag: 3) == .good)
        #expect(!uas.host.isDone(second))
    }

    @Test func `logical units that are not there say so`() throws {
        let uas = try uas()
        let submission = uas.submit([0, 0, 0, 0, 0, 0], unit: 3)
        #expect(uas.answer(submission) == .checkCondition(key: 5, code: 0x2500))
    }

    @Test func `what takes the loop long is moved beside it`() throws {
        let big = FakeImage(byteCount: 8 << 20)
        let uas = try UASHost(big)
        // 1 MiB at once; 512 bytes more wait for the worker.
        for (count, isAtOnce) in [(2048, true), (2049, false)] {
            let block: [UInt8] = [
                0x28, 0, 0, 0, 0, 0, 0, UInt8(count >> 8), UInt8(count & 0xff), 0,
            ]
            let read = uas.submit(block, in: count * 512)
            #expect(uas.host.isDone(read.status) == isAtOnce)
            #expect(uas.answer(read) == .good)
        }
    }

    // MARK: - Task management

    @Test func `a command that was aborted is not answered`() throws {
        let uas = try uas()
        // The first waits for its data, the others for the first.
        let first = uas.status(8)
        uas.request(UASHost.command(Self.read(1, 1), 8))
        let second = uas.submit(inquiry, in: 36)
        #expect(!uas.host.isDone(second.status))
        let query = uas.status(9)
        uas.request(UASHost.function(0x80, 9, of: 8))
        #expect(uas.answer(query, tag: 9) == .response(8))
        let done = uas.status(10)
        uas.request(UASHost.function(0x01, 10, of: 8))
        #expect(uas.answer(done, tag: 10) == .response(0))
        #expect(uas.answer(second) == .good)
        #expect(!uas.host.isDone(first))
        uas.host.device.cancel(first)
        #expect(uas.host.port.completions[first]?.status == .cancelled)
        expectOperational(uas)
    }

    @Test(arguments: [UInt8(0x02), 0x04, 0x08, 0x10])
    func `all commands are aborted at once`(function: UInt8) throws {
        let uas = try uas()
        for tag in 1...8 as ClosedRange<UInt16> {
            uas.request(UASHost.command(Self.write(UInt8(tag), 1), tag))
        }
        let done = uas.status(20)
        uas.request(UASHost.function(function, 20))
        #expect(uas.answer(done, tag: 20) == .response(0))
        let query = uas.status(21)
        uas.request(UASHost.function(0x81, 21))
        #expect(uas.answer(query, tag: 21) == .response(0))
        if function >= 0x08 {
            #expect(uas.run([0, 0, 0, 0, 0, 0]).0 == .checkCondition(key: 6, code: 0x2900))
        }
        expectOperational(uas)
        #expect(contents == pattern)
    }

    @Test func `what is no request is answered as such`() throws {
        let uas = try uas()
        let cases: [(name: String, bytes: [UInt8], answer: UASHost.Answer)] = [
            ("unknown", [0x77, 0, 0, 4], .response(2)),
            ("short command", Array(UASHost.command(inquiry, 4).dropLast()), .response(2)),
            ("short function", Array(UASHost.function(1, 4).dropLast()), .response(2)),
            ("unknown function", UASHost.function(0x33, 4), .response(4)),
            ("other unit", UASHost.function(8, 4, unit: 1), .response(9)),
        ]
        for (name, bytes, answer) in cases {
            let status = uas.status(4)
            uas.request(bytes)
            #expect(uas.answer(status, tag: 4) == answer, "\(name)")
        }
        expectOperational(uas)
    }

    @Test(arguments: [[UInt8](), UASHost.function(0x80, 4, of: 9)])
    func `a tag that is in use ends both`(function: [UInt8]) throws {
        let uas = try uas()
        uas.request(UASHost.command(Self.write(1, 1), 4))
        let status = uas.status(4)
        uas.request(function.isEmpty ? UASHost.command(inquiry, 4) : function)
        #expect(uas.answer(status, tag: 4) == .response(0x0a))
        expectOperational(uas)
        #expect(contents == pattern)
    }

    @Test(arguments: [UInt8(0x01), 0x02, 0x08, 0x10])
    func `a status that nobody took is not told to the next command of its tag`(
        function: UInt8
    ) throws {
        let uas = try uas()
        uas.request(UASHost.command([0, 0, 0, 0, 0, 0], 5))
        uas.request(UASHost.function(function, 6, of: 5))
        #expect(uas.answer(uas.status(6), tag: 6) == .response(0))
        // A reset is told of first.
        if function >= 0x08 { _ = uas.run([0, 0, 0, 0, 0, 0]) }
        let status = uas.status(7)
        uas.request(UASHost.command(Self.write(1, 1), 7))
        uas.request(UASHost.function(0x01, 8, of: 7))
        let again = uas.status(5)
        uas.request(UASHost.command(Self.write(1, 1), 5))
        #expect(!uas.host.isDone(again))
        #expect(!uas.host.isDone(status))
    }

    @Test func `commands are aborted while the disk is busy with one`() throws {
        let uas = try uas()
        image.set { $0.nonblocking = .wouldBlock }
        image.shutGate()
        let read = uas.submit(Self.read(0, 8), in: 4096)
        let waiting = uas.submit(Self.write(1, 1), out: [UInt8](repeating: 1, count: 512))
        let done = uas.status(30)
        uas.request(UASHost.function(0x02, 30))
        #expect(uas.host.isDone(done))
        #expect(read.data.flatMap { uas.host.port.completions[$0]?.transferred } == 0)
        image.openGate()
        uas.host.waitUntilIdle()
        #expect(!uas.host.isDone(read.status))
        #expect(!uas.host.isDone(waiting.status))
        expectOperational(uas)
        #expect(contents == pattern)
    }

    @Test func `a queue that is full says so, and can be emptied`() throws {
        let uas = try uas(streams: 0)
        for tag in 1...100 as ClosedRange<UInt16> {
            uas.request(UASHost.command(Self.read(1, 1), tag))
        }
        #expect(uas.answer(uas.status(1), tag: 1) == .ready(.in))
        // One is at work.
        for tag in UInt16(MassStorageLimits.uasCommands + 2)...100 {
            #expect(uas.answer(uas.status(tag), tag: tag) == .full)
        }
        let done = uas.status(200)
        uas.request(UASHost.function(0x02, 200))
        #expect(uas.answer(done, tag: 200) == .response(0))
        // The transfer that was asked for is not mistaken for that of the next command.
        let late = uas.data(in: 512, 1)
        #expect(uas.host.port.completions[late]?.transferred == 0)
        expectOperational(uas)
    }

    @Test func `READY of an aborted command is not sent any more`() throws {
        let uas = try uas(streams: 0)
        uas.request(UASHost.command(Self.read(1, 1), 5))
        uas.request(UASHost.function(1, 6, of: 5))
        #expect(uas.answer(uas.status(6), tag: 6) == .response(0))
        expectOperational(uas)
    }

    @Test func `a reset of the logical unit is told of, and leaves an ejected medium out`() throws {
        let uas = try uas()
        let ready: [UInt8] = [0, 0, 0, 0, 0, 0]
        #expect(uas.run([0x1b, 0, 0, 0, 2, 0]).0 == .good)
        let done = uas.status(20)
        uas.request(UASHost.function(0x08, 20))
        #expect(uas.answer(done, tag: 20) == .response(0))
        #expect(uas.run(ready).0 == .checkCondition(key: 6, code: 0x2900))
        #expect(uas.run(ready).0 == .checkCondition(key: 2, code: 0x3a00))
    }

    @Test(arguments: [[UInt8](), [1, 0, 0], UASHost.command([], 0), UASHost.command([], 33)])
    func `a request without a stream to answer on halts the command pipe`(
        bytes: [UInt8]
    ) throws {
        let uas = try uas()
        #expect(uas.host.wait(uas.request(bytes))?.status == .stalled)
        #expect(uas.host.isHalted(MassStorageDescriptors.commandEndpoint))
        #expect(
            uas.host.wait(uas.request(UASHost.command(inquiry, 1)))?.status == .stalled)
        uas.host.clearHalt(MassStorageDescriptors.commandEndpoint)
        expectOperational(uas)
    }

    @Test func `requests wait when nobody takes the answers`() throws {
        let uas = try uas()
        let requests = (0..<500).map { _ in uas.request([0x77, 0, 0, 1]) }
        #expect(requests.count { uas.host.isDone($0) } == MassStorageLimits.uasReplies)
        for request in requests {
            #expect(uas.answer(uas.status(1), tag: 1) == .response(2))
            #expect(uas.host.isDone(request))
        }
        expectOperational(uas)
    }

    // MARK: - Transfers that do not fit

    @Test func `a transfer that ends within a packet of the device's is babble`() throws {
        let uas = try uas()
        uas.request(UASHost.command(Self.read(0, 4), 1))
        #expect(uas.host.wait(uas.data(in: 1000, 1))?.status == .babbled)
        uas.host.control(0x01, 11, value: 1)
        expectOperational(uas)
        let status = uas.status(2, room: 15)
        uas.request(UASHost.command([0, 0, 0, 0, 0, 0], 2))
        #expect(uas.host.wait(status)?.status == .babbled)
        expectOperational(uas)
    }

    @Test func `data that end too early fail the command and write nothing more`() throws {
        let uas = try uas()
        let submission = uas.submit(Self.write(1, 4), out: [UInt8](repeating: 9, count: 700))
        #expect(uas.answer(submission) == .checkCondition(key: 0xb, code: 0x4b00))
        #expect(contents == pattern)
        expectOperational(uas)
    }

    @Test func `data beyond the command are not written`() throws {
        let uas = try uas()
        let submission = uas.submit(Self.write(1, 1), out: [UInt8](repeating: 9, count: 2048))
        #expect(uas.answer(submission) == .good)
        #expect(submission.data.flatMap { uas.host.port.completions[$0]?.transferred } == 512)
        #expect(Array(contents[512..<1024]) == [UInt8](repeating: 9, count: 512))
        #expect(Array(contents[1024..<3072]) == Array(pattern[1024..<3072]))
    }

    @Test func `empty packets in a write are packets that end too early`() throws {
        let uas = try uas()
        let submission = uas.submit(Self.write(1, 1), out: [])
        #expect(uas.answer(submission) == .checkCondition(key: 0xb, code: 0x4b00))
        expectOperational(uas)
    }

    @Test func `a command without data gives the host's transfer back before its status`() throws {
        let uas = try uas()
        // No room for what INQUIRY tells; and a command that is not known.
        for (block, answer) in [
            ([UInt8](arrayLiteral: 0x12, 0, 0, 0, 0, 0), UASHost.Answer.good),
            ([0x4d, 0, 0, 0, 0, 0, 0, 0, 64, 0], .checkCondition(key: 5, code: 0x2000)),
        ] {
            let submission = uas.submit(block, in: 64)
            #expect(uas.answer(submission) == answer)
            let order = uas.host.port.order
            let data = try #require(submission.data.flatMap { order.firstIndex(of: $0) })
            #expect(try data < #require(order.firstIndex(of: submission.status)))
        }
    }

    @Test func `a status transfer that is too small does not lose the status`() throws {
        let uas = try uas()
        uas.request(UASHost.command([0xff, 0, 0, 0, 0, 0], 5))
        #expect(uas.host.wait(uas.status(5, room: 20))?.status == .babbled)
        #expect(uas.answer(uas.status(5), tag: 5) == .checkCondition(key: 5, code: 0x2000))
    }

    // MARK: - Resets and media

    @Test func `a flush that failed is remembered until its status was taken`() throws {
        let uas = try uas()
        let flush: [UInt8] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        image.set { $0.fault = { $0 == .flush ? .ioError : nil } }
        uas.request(UASHost.command(flush, 5))
        uas.host.waitUntilIdle()
        uas.request(UASHost.function(0x02, 6))
        #expect(uas.answer(uas.status(6), tag: 6) == .response(0))
        image.set { $0.fault = { _ in nil } }
        #expect(uas.run(flush).0 == .checkCondition(key: 3, code: 0x0c00))
        #expect(uas.run(flush).0 == .good)
    }

    @Test func `commands for one medium are not carried out on the next`() throws {
        let uas = try uas()
        uas.request(UASHost.command(inquiry, 1))
        let writes = (10...13 as ClosedRange<UInt16>).map { tag in
            let status = uas.status(tag)
            _ = uas.data(out: [UInt8](repeating: 0xbb, count: 512), tag)
            uas.request(UASHost.command(Self.write(UInt8(tag), 1), tag))
            return (tag, status)
        }
        let next = FakeImage(byteCount: 1 << 20)
        uas.host.device.changeMedium(to: next, force: false) { #expect($0 == nil) }
        uas.host.waitUntilIdle()
        _ = uas.data(in: 36, 1)
        #expect(uas.answer(writes[0].1, tag: writes[0].0) == .checkCondition(key: 6, code: 0x2800))
        for (tag, status) in writes.dropFirst() {
            #expect(uas.answer(status, tag: tag) == .checkCondition(key: 2, code: 0x3a00))
        }
        #expect(contents == pattern)
        #expect(next.bytes(at: 0, count: 1 << 20).allSatisfy { $0 == 0 })
        #expect(uas.run(Self.read(3, 2), in: 1024).0 == .good)
    }

    @Test func `data that the host was asked for are not mistaken for those of the next`() throws {
        let uas = try uas(streams: 0)
        uas.request(UASHost.command(Self.read(1, 1), 1))
        uas.request(UASHost.command(inquiry, 2))
        #expect(uas.answer(uas.status(1), tag: 1) == .ready(.in))
        uas.host.device.changeMedium(to: nil, force: false) { #expect($0 == nil) }
        uas.host.waitUntilIdle()
        let first = uas.data(in: 512, 1)
        #expect(uas.host.port.completions[first]?.transferred == 0)
        #expect(uas.answer(uas.status(1), tag: 1) == .checkCondition(key: 2, code: 0x3a00))
        #expect(uas.answer(uas.status(2), tag: 2) == .ready(.in))
        let second = uas.data(in: 36, 2)
        #expect(uas.answer(uas.status(2), tag: 2) == .good)
        #expect(uas.host.bytes(second).count == 36)
    }

    @Test func `streams of one host are not those of the next`() throws {
        let uas = try uas()
        uas.host.device.detached()
        uas.host.device.attach(to: uas.host.port)
        uas.host.setConfiguration(1)
        uas.host.control(0x01, 11, value: UInt16(MassStorageDescriptors.uasSetting))
        let request = uas.request(UASHost.command([0, 0, 0, 0, 0, 0], 0x100))
        #expect(uas.host.wait(request)?.status == .completed)
    }

    @Test func `a reset of the port ends everything`() throws {
        let uas = try uas()
        image.set { $0.nonblocking = .wouldBlock }
        let submissions = (0..<8).map { _ in uas.submit(Self.read(0, 8), in: 4096) }
        uas.host.device.reset()
        uas.host.waitUntilIdle()
        for submission in submissions {
            #expect(uas.host.isDone(submission.status))
            #expect(submission.data.map { uas.host.isDone($0) } == true)
        }
        image.set { $0.nonblocking = .served }
        uas.host.setConfiguration(1)
        #expect(uas.host.run(Self.read(3, 2), in: 1024).data == bytes(3, 2))
        uas.choose()
        expectOperational(uas)
    }

    @Test func `a medium taken out fails the commands that wait`() throws {
        let uas = try uas()
        uas.request(UASHost.command(Self.read(0, 8), 1))
        uas.request(UASHost.command(Self.read(8, 8), 2))
        let statuses = [uas.status(1), uas.status(2)]
        uas.host.device.changeMedium(to: nil, force: false) { #expect($0 == nil) }
        uas.host.waitUntilIdle()
        #expect(uas.answer(statuses[0], tag: 1) == .checkCondition(key: 2, code: 0x3a00))
        #expect(uas.answer(statuses[1], tag: 2) == .checkCondition(key: 2, code: 0x3a00))
    }
}
