// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

@testable import MassStorage

/// Task management functions of USB Attached SCSI, invalid requests and full queues.
@Suite struct UASTaskManagementTests: UASSuite {
    let image = Self.makeImage()

    private func uas(streams: Int = 32) throws -> UASHost { try UASHost(image, streams: streams) }

    @Test func `an aborted command has no status`() throws {
        let uas = try uas()
        // The first command waits for its data transfer, the others for the first.
        let first = uas.status(8)
        uas.request(UASHost.command(Self.read(1, 1), 8))
        let second = uas.submit(Self.inquiry, in: 36)
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
    func `task management functions abort all commands`(function: UInt8) throws {
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
        #expect(contents == Self.pattern)
    }

    @Test func `invalid requests are answered with their response code`() throws {
        let uas = try uas()
        let cases: [(name: String, bytes: [UInt8], answer: UASHost.Answer)] = [
            ("unknown", [0x77, 0, 0, 4], .response(2)),
            ("short command", Array(UASHost.command(Self.inquiry, 4).dropLast()), .response(2)),
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
    func `a request with a tag in use aborts the command of this tag`(function: [UInt8]) throws {
        let uas = try uas()
        uas.request(UASHost.command(Self.write(1, 1), 4))
        let status = uas.status(4)
        uas.request(function.isEmpty ? UASHost.command(Self.inquiry, 4) : function)
        #expect(uas.answer(status, tag: 4) == .response(0x0a))
        expectOperational(uas)
        #expect(contents == Self.pattern)
    }

    @Test(arguments: [UInt8(0x01), 0x02, 0x08, 0x10])
    func `an aborted command's status is not sent to the next command of its tag`(
        function: UInt8
    ) throws {
        let uas = try uas()
        uas.request(UASHost.command([0, 0, 0, 0, 0, 0], 5))
        uas.request(UASHost.function(function, 6, of: 5))
        #expect(uas.answer(uas.status(6), tag: 6) == .response(0))
        // A reset establishes a unit attention.
        if function >= 0x08 { _ = uas.run([0, 0, 0, 0, 0, 0]) }
        let status = uas.status(7)
        uas.request(UASHost.command(Self.write(1, 1), 7))
        uas.request(UASHost.function(0x01, 8, of: 7))
        let again = uas.status(5)
        uas.request(UASHost.command(Self.write(1, 1), 5))
        #expect(!uas.host.isDone(again))
        #expect(!uas.host.isDone(status))
    }

    @Test func `commands are aborted while the worker executes one`() throws {
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
        #expect(contents == Self.pattern)
    }

    @Test func `a full queue answers TASK SET FULL and can be aborted`() throws {
        let uas = try uas(streams: 0)
        for tag in 1...100 as ClosedRange<UInt16> {
            uas.request(UASHost.command(Self.read(1, 1), tag))
        }
        #expect(uas.answer(uas.status(1), tag: 1) == .ready(.in))
        // One command is current, not queued.
        for tag in UInt16(MassStorageLimits.uasCommands + 2)...100 {
            #expect(uas.answer(uas.status(tag), tag: tag) == .full)
        }
        let done = uas.status(200)
        uas.request(UASHost.function(0x02, 200))
        #expect(uas.answer(done, tag: 200) == .response(0))
        // The requested transfer is not used for the next command.
        let late = uas.data(in: 512, 1)
        #expect(uas.host.port.completions[late]?.transferred == 0)
        expectOperational(uas)
    }

    @Test func `READ READY of an aborted command is not sent`() throws {
        let uas = try uas(streams: 0)
        uas.request(UASHost.command(Self.read(1, 1), 5))
        uas.request(UASHost.function(1, 6, of: 5))
        #expect(uas.answer(uas.status(6), tag: 6) == .response(0))
        expectOperational(uas)
    }

    @Test
    func `LOGICAL UNIT RESET establishes a unit attention and does not load an ejected medium`()
        throws
    {
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
    func `a request whose tag is not a stream halts the command pipe`(
        bytes: [UInt8]
    ) throws {
        let uas = try uas()
        #expect(uas.host.wait(uas.request(bytes))?.status == .stalled)
        #expect(uas.host.isHalted(MassStorageDescriptors.commandEndpoint))
        #expect(
            uas.host.wait(uas.request(UASHost.command(Self.inquiry, 1)))?.status == .stalled)
        uas.host.clearHalt(MassStorageDescriptors.commandEndpoint)
        expectOperational(uas)
    }

    @Test func `requests wait when the host does not fetch replies`() throws {
        let uas = try uas()
        let requests = (0..<500).map { _ in uas.request([0x77, 0, 0, 1]) }
        #expect(requests.count { uas.host.isDone($0) } == MassStorageLimits.uasReplies)
        for request in requests {
            #expect(uas.answer(uas.status(1), tag: 1) == .response(2))
            #expect(uas.host.isDone(request))
        }
        expectOperational(uas)
    }
}
