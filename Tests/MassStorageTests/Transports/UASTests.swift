// SPDX-License-Identifier: Apache-2.0

import SystemPackage
import Testing
import USB

@testable import MassStorage

/// USB Attached SCSI: tagged commands, with streams and without.
@Suite struct UASTests: UASSuite {
    let image = Self.makeImage()

    private func uas(streams: Int = 32) throws -> UASHost { try UASHost(image, streams: streams) }

    /// Makes the image move one block at a time and some operations fail.
    private func fail(_ fault: @escaping @Sendable (FakeImage.Operation) -> Errno?) {
        image.set {
            $0.largestAccess = 512
            $0.fault = fault
        }
    }

    // MARK: - Descriptors

    @Test(arguments: [USBSpeed.high, .superSpeed])
    func `UAS is alternate setting 1`(speed: USBSpeed) throws {
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
        // Pipe usage descriptors, endpoints, and streams where UAS needs them.
        #expect(descriptors.filter { $0[1] == 0x24 }.map { $0[2] } == [1, 2, 3, 4])
        #expect(
            descriptors.filter { $0[1] == 5 }.map { $0[2] } == [0x81, 2, 4, 0x83, 0x81, 2])
        if speed.isSuperSpeed {
            #expect(descriptors.filter { $0[1] == 48 }.map { $0[3] } == [0, 0, 0, 5, 5, 5])
        }
        #expect(bytes.count == Int(bytes[2]) | Int(bytes[3]) << 8)
    }

    @Test func `a device without UAS has one alternate setting`() throws {
        let host = try BulkOnlyHost(image)
        #expect(host.control(0x01, 11, value: 1).status == .stalled)
        #expect(host.control(0x80, 6, value: 0x0200, length: 0xffff).bytes.count == 9 + 9 + 2 * 13)
    }

    @Test func `a host switches between Bulk-Only Transport and UAS`() throws {
        let uas = try uas()
        expectOperational(uas)
        let waiting = uas.status(7)
        uas.host.control(0x01, 11, value: 0)
        // Bulk-Only Transport has no status pipe.
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
        // Less data than the transfer has room for: a short packet.
        let (answer, inquiry) = uas.run(Self.inquiry, in: 255)
        #expect(answer == .good)
        #expect(inquiry.count == 36)
        #expect(uas.run([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).0 == .good)
        #expect(image.flushCount == 1)
    }

    @Test(arguments: [32, 0])
    func `the status of a failed command contains sense data`(streams: Int) throws {
        let uas = try uas(streams: streams)
        #expect(uas.run([0xff, 0, 0, 0, 0, 0]).0 == .checkCondition(key: 5, code: 0x2000))
        // The status has cleared the sense data.
        let (answer, sense) = uas.run([0x03, 0, 0, 0, 18, 0], in: 18)
        #expect(answer == .good)
        #expect(sense[2] == 0)
        fail { if case .read(5 * 512, _) = $0 { .ioError } else { nil } }
        let (failed, data) = uas.run(Self.read(4, 4), in: 2048)
        #expect(failed == .checkCondition(key: 3, code: 0x1100))
        #expect(data == bytes(4, 1))
        expectOperational(uas)
    }

    @Test func `a failed write can be repeated`() throws {
        let uas = try uas()
        fail { if case .write(10 * 512, _, _) = $0 { .noSpace } else { nil } }
        let data = [UInt8](repeating: 1, count: 2048)
        #expect(uas.run(Self.write(9, 4), out: data).0 == .checkCondition(key: 7, code: 0x2707))
        image.set { $0.fault = { _ in nil } }
        #expect(uas.run(Self.write(9, 4), out: data).0 == .good)
        #expect(Array(contents[9 * 512..<13 * 512]) == data)
        expectOperational(uas)
    }

    @Test func `commands are executed in the order of arrival`() throws {
        let uas = try uas()
        // Each write overwrites its predecessor.
        let writes = (0..<16).map { index in
            uas.submit(Self.write(2, 1), out: [UInt8](repeating: UInt8(index), count: 512))
        }
        let read = uas.submit(Self.read(2, 1), in: 512)
        #expect(uas.answer(read) == .good)
        for write in writes { #expect(uas.answer(write) == .good) }
        #expect(read.data.map { uas.host.bytes($0) } == [UInt8](repeating: 15, count: 512))
    }

    @Test func `commands on the worker are executed in the order of arrival`() throws {
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

    @Test func `data and status wait for their transfers, in any order of submission`() throws {
        let uas = try uas()
        uas.request(UASHost.command(Self.read(1, 4), 5))
        uas.request(UASHost.command(Self.inquiry, 6))
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

    @Test func `a HEAD OF QUEUE command overtakes queued commands`() throws {
        let uas = try uas()
        uas.request(UASHost.command(Self.read(1, 1), 1))
        uas.request(UASHost.command(Self.inquiry, 2))
        uas.request(UASHost.command([0, 0, 0, 0, 0, 0], 3, attribute: 1))
        let (second, third) = (uas.status(2), uas.status(3))
        _ = uas.data(in: 512, 1)
        #expect(uas.answer(third, tag: 3) == .good)
        #expect(!uas.host.isDone(second))
    }

    @Test func `other logical units are not supported`() throws {
        let uas = try uas()
        let submission = uas.submit([0, 0, 0, 0, 0, 0], unit: 3)
        #expect(uas.answer(submission) == .checkCondition(key: 5, code: 0x2500))
    }

    @Test func `transfers of more than a chunk are moved by the worker`() throws {
        let big = FakeImage(byteCount: 8 << 20)
        let uas = try UASHost(big)
        // The event loop reads 1 MiB; the worker reads a block more.
        for (count, isAtOnce) in [(2048, true), (2049, false)] {
            let block: [UInt8] = [
                0x28, 0, 0, 0, 0, 0, 0, UInt8(count >> 8), UInt8(count & 0xff), 0,
            ]
            let read = uas.submit(block, in: count * 512)
            #expect(uas.host.isDone(read.status) == isAtOnce)
            #expect(uas.answer(read) == .good)
        }
    }

    // MARK: - Transfers of other lengths

    @Test func `a transfer smaller than the next packet is a babble error`() throws {
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

    @Test func `a short packet before the end of the data fails the command and is not written`()
        throws
    {
        let uas = try uas()
        let submission = uas.submit(Self.write(1, 4), out: [UInt8](repeating: 9, count: 700))
        #expect(uas.answer(submission) == .checkCondition(key: 0xb, code: 0x4b00))
        #expect(contents == Self.pattern)
        expectOperational(uas)
    }

    @Test func `data beyond the end of the command are not written`() throws {
        let uas = try uas()
        let submission = uas.submit(Self.write(1, 1), out: [UInt8](repeating: 9, count: 2048))
        #expect(uas.answer(submission) == .good)
        #expect(submission.data.flatMap { uas.host.port.completions[$0]?.transferred } == 512)
        #expect(Array(contents[512..<1024]) == [UInt8](repeating: 9, count: 512))
        #expect(Array(contents[1024..<3072]) == Array(Self.pattern[1024..<3072]))
    }

    @Test func `an empty packet before the end of the data fails the command`() throws {
        let uas = try uas()
        let submission = uas.submit(Self.write(1, 1), out: [])
        #expect(uas.answer(submission) == .checkCondition(key: 0xb, code: 0x4b00))
        expectOperational(uas)
    }

    @Test func `the unused data transfer of a command completes before its status`() throws {
        let uas = try uas()
        // INQUIRY with allocation length 0, and an unknown command.
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

    @Test func `a status transfer that is too small is a babble error that keeps the status`()
        throws
    {
        let uas = try uas()
        uas.request(UASHost.command([0xff, 0, 0, 0, 0, 0], 5))
        #expect(uas.host.wait(uas.status(5, room: 20))?.status == .babbled)
        #expect(uas.answer(uas.status(5), tag: 5) == .checkCondition(key: 5, code: 0x2000))
    }

    // MARK: - Resets and media

    @Test func `a flush error is kept until its status is fetched`() throws {
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

    @Test func `commands queued before a medium change are not executed on the new medium`() throws
    {
        let uas = try uas()
        uas.request(UASHost.command(Self.inquiry, 1))
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
        #expect(contents == Self.pattern)
        #expect(next.bytes(at: 0, count: 1 << 20).allSatisfy { $0 == 0 })
        #expect(uas.run(Self.read(3, 2), in: 1024).0 == .good)
    }

    @Test func `a data transfer requested by a failed command is not used for the next one`() throws
    {
        let uas = try uas(streams: 0)
        uas.request(UASHost.command(Self.read(1, 1), 1))
        uas.request(UASHost.command(Self.inquiry, 2))
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

    @Test func `detaching clears the streams`() throws {
        let uas = try uas()
        uas.host.device.detached()
        uas.host.device.attach(to: uas.host.port)
        uas.host.setConfiguration(1)
        uas.host.control(0x01, 11, value: UInt16(MassStorageDescriptors.uasSetting))
        let request = uas.request(UASHost.command([0, 0, 0, 0, 0, 0], 0x100))
        #expect(uas.host.wait(request)?.status == .completed)
    }

    @Test func `a port reset ends all commands`() throws {
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

    @Test func `removing the medium fails the queued commands`() throws {
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
