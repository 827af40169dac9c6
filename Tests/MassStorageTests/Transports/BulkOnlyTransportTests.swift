// SPDX-License-Identifier: Apache-2.0

import TestKit
import Testing
import USB

@testable import MassStorage

/// Bulk-Only Transport: invalid CBWs, resets, halts, and transfers in any number and order.
@Suite struct BulkOnlyTransportTests {
    let image = FakeImage(byteCount: 1 << 20)
    let host: BulkOnlyHost
    let inEndpoint = MassStorageDescriptors.inEndpoint
    let outEndpoint = MassStorageDescriptors.outEndpoint
    let read8: [UInt8] = [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0]
    let write8: [UInt8] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0]
    let pattern = (0..<4096).map { UInt8(truncatingIfNeeded: $0 ^ $0 >> 8) }

    init() throws {
        image.fill(at: 0, pattern)
        host = try BulkOnlyHost(image)
    }

    private func wrapper(_ command: [UInt8], length: Int, _ direction: Direction) -> [UInt8] {
        host.wrapper(command, length: length, direction: direction, tag: 0x01020304)
    }

    private func expectOperational() {
        #expect(host.run(read8, in: 4096).data == pattern)
        #expect(host.port.doubles.isEmpty)
    }

    // MARK: - Wrappers

    static func damaged() -> [(String, [UInt8])] {
        var good: [UInt8] = [0x55, 0x53, 0x42, 0x43, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6]
        good += [UInt8](repeating: 0, count: 16)
        func change(_ index: Int, _ value: UInt8) -> [UInt8] {
            var bytes = good
            bytes[index] = value
            return bytes
        }
        return [
            ("short", Array(good.dropLast())), ("long", good + [0]), ("empty", []),
            ("signature", change(3, 0x53)), ("flags", change(12, 0x01)),
            ("unit", change(13, 0x10)), ("no command", change(14, 0)),
            ("long command", change(14, 17)), ("huge", good + [UInt8](repeating: 0, count: 4096)),
        ]
    }

    @Test("an invalid CBW halts both endpoints until reset recovery", arguments: damaged())
    func invalidWrapper(name: String, bytes: [UInt8]) {
        #expect(host.wait(host.submitOut(bytes))?.status == .stalled)
        #expect(host.isHalted(inEndpoint))
        #expect(host.isHalted(outEndpoint))
        #expect(host.wait(host.submitIn(13))?.status == .stalled)
        // The halts cannot be cleared before a transport reset (6.6.1).
        host.clearHalt(inEndpoint)
        host.clearHalt(outEndpoint)
        #expect(host.isHalted(inEndpoint))
        #expect(host.isHalted(outEndpoint))
        #expect(host.wait(host.submitOut(wrapper(read8, length: 4096, .in)))?.status == .stalled)
        #expect(host.resetTransport() == .completed)
        // A transport reset does not clear the halts (3.1).
        #expect(host.isHalted(inEndpoint))
        host.clearHalt(inEndpoint)
        #expect(!host.isHalted(inEndpoint))
        #expect(host.isHalted(outEndpoint))
        host.clearHalt(outEndpoint)
        expectOperational()
    }

    @Test func `ten thousand random CBWs are refused`() {
        var random = SplitMix64(seed: 0xbad_cb57)
        for round in 0..<10_000 {
            var bytes = (0..<Int.random(in: 0...64, using: &random)).map { _ in
                UInt8.random(in: 0...255, using: &random)
            }
            if bytes.starts(with: Array("USBC".utf8)) {
                bytes[0] = 0
            }
            let id = host.submitOut(bytes)
            #expect(host.port.completions[id]?.status == .stalled, "round \(round)")
            let status = host.submitIn(13)
            #expect(host.port.completions[status]?.status == .stalled, "round \(round)")
            host.recover()
        }
        expectOperational()
    }

    @Test func `the device works after twenty thousand random commands`() throws {
        var random = SplitMix64(seed: 0x5c51)
        let codes = SCSICommand.all.map(\.operationCode)
        let small = FakeImage(byteCount: 64 << 10)
        let host = try BulkOnlyHost(small)
        for round in 0..<20_000 {
            var command = (0..<16).map { _ in UInt8.random(in: 0...255, using: &random) }
            if Int.random(in: 0..<10, using: &random) > 0 {
                command[0] = codes[Int.random(in: 0..<codes.count, using: &random)]
            }
            // Mostly small values, so that some commands are valid.
            for index in 1..<16 where Int.random(in: 0..<4, using: &random) > 0 {
                command[index] = index % 4 == 0 ? UInt8.random(in: 0...16, using: &random) : 0
            }
            let lengths = [0, 1, 18, 36, 512, 1024, 4096, 8192, Int(UInt32.max)]
            let length = lengths[Int.random(in: 0..<lengths.count, using: &random)]
            var cbw = host.wrapper(
                command, length: length, direction: Bool.random(using: &random) ? .in : .out,
                tag: UInt32(round), unit: round % 16 == 0 ? 1 : 0)
            cbw[14] = UInt8.random(in: 1...16, using: &random)
            var ids = [host.submitOut(cbw)]
            for _ in 0..<Int.random(in: 0...4, using: &random) {
                let count = [0, 13, 31, 512, 1000, 1024, 4096, 9000][
                    Int.random(in: 0..<8, using: &random)]
                ids.append(
                    Bool.random(using: &random)
                        ? host.submitIn(count)
                        : host.submitOut([UInt8](repeating: 0x55, count: count)))
            }
            host.waitUntilIdle()
            for id in ids where !host.isDone(id) { host.device.cancel(id) }
            #expect(ids.allSatisfy(host.isDone), "round \(round)")
            host.recover()
            if round % 500 == 0 {
                // A reset loads a medium that a random command has ejected.
                host.device.reset()
                host.setConfiguration(1)
                _ = host.sense()
                #expect(host.run(read8, in: 4096).status == 0, "round \(round)")
            }
        }
        #expect(host.port.doubles.isEmpty)
    }

    // MARK: - Data in several transfers

    @Test(arguments: [1024, 2048, 3072, 4096, 8192])
    func `a read may be split into transfers of whole packets`(chunk: Int) {
        let result = host.run(read8, in: 4096, chunk: chunk)
        #expect(result.data == pattern)
        #expect(result.status == 0)
        #expect(result.residue == 0)
    }

    @Test func `at high speed packets have 512 bytes`() throws {
        let host = try BulkOnlyHost(image, speed: .high)
        let result = host.run(read8, in: 4096, chunk: 512)
        #expect(result.data == pattern)
        #expect(result.status == 0)
    }

    @Test(arguments: [1024, 2048, 3072, 4096])
    func `a write may be split into transfers of whole packets`(chunk: Int) {
        let data = pattern.map { ~$0 }
        let result = host.run(write8, out: data, chunk: chunk)
        #expect(result.status == 0)
        #expect(image.bytes(at: 0, count: 4096) == data)
    }

    @Test(arguments: 1...9)
    func `buffers of several segments are read and written in order`(segments: Int) {
        host.segments = segments
        #expect(host.run(read8, in: 4096).data == pattern)
        let data = pattern.map { $0 &+ 3 }
        #expect(host.run(write8, out: data).status == 0)
        #expect(image.bytes(at: 0, count: 4096) == data)
    }

    @Test func `CBW, data and CSW transfers may be submitted together`() {
        let command = host.submitOut(wrapper(read8, length: 4096, .in))
        let first = host.submitIn(1024)
        let second = host.submitIn(3072)
        let status = host.submitIn(13)
        // The next command waits for the CSW to be fetched.
        let next = host.submitOut(wrapper([0, 0, 0, 0, 0, 0], length: 0, .out))
        let nextStatus = host.submitIn(13)
        host.waitUntilIdle()
        #expect(host.bytes(first) + host.bytes(second) == pattern)
        #expect(host.bytes(status).last == 0)
        #expect(host.bytes(nextStatus).last == 0)
        let bulk: Set = [command, first, second, status, next, nextStatus]
        #expect(
            host.port.order.filter(bulk.contains) == [
                command, first, second, status, next, nextStatus,
            ])
    }

    @Test func `data and CSW transfers may be submitted before the CBW`() {
        let data = host.submitIn(4096)
        let status = host.submitIn(13)
        #expect(!host.isDone(data))
        _ = host.submitOut(wrapper(read8, length: 4096, .in))
        host.waitUntilIdle()
        #expect(host.bytes(data) == pattern)
        #expect(host.bytes(status).count == 13)
    }

    @Test func `a short packet before the end of the data is a phase error`() {
        for short in [0, 1, 1000] {
            let result = host.run(write8, out: [UInt8](repeating: 1, count: 4096), chunk: 1024)
            #expect(result.status == 0)
            _ = host.submitOut(wrapper(write8, length: 4096, .out))
            #expect(
                host.wait(host.submitOut([UInt8](repeating: 2, count: short)))?.status == .stalled)
            host.clearHalt(outEndpoint)
            let status = host.submitIn(13)
            #expect(host.wait(status)?.status == .completed)
            #expect(host.bytes(status).last == 2)
            host.recover()
        }
        #expect(image.bytes(at: 0, count: 4096) == [UInt8](repeating: 1, count: 4096))
    }

    @Test func `a transfer longer than the CBW's length is a phase error and not written`() {
        _ = host.submitOut(wrapper(write8, length: 4096, .out))
        #expect(host.wait(host.submitOut([UInt8](repeating: 2, count: 4097)))?.status == .stalled)
        host.clearHalt(outEndpoint)
        let status = host.submitIn(13)
        _ = host.wait(status)
        #expect(host.bytes(status).last == 2)
        host.recover()
        expectOperational()
    }

    @Test func `a transfer smaller than the next packet is a babble error that loses no data`() {
        _ = host.submitOut(wrapper(read8, length: 4096, .in))
        #expect(host.wait(host.submitIn(100))?.status == .babbled)
        let data = host.submitIn(4096)
        _ = host.wait(data)
        #expect(host.bytes(data) == pattern)
        #expect(host.wait(host.submitIn(12))?.status == .babbled)
        let status = host.submitIn(64)
        #expect(host.wait(status)?.transferred == 13)
        #expect(host.bytes(status).last == 0)
    }

    // MARK: - Reset, cancel, detach

    @Test func `after a transport reset in the data stage the next transfer is a CBW`() {
        _ = host.submitOut(wrapper(read8, length: 4096, .in))
        _ = host.wait(host.submitIn(1024))
        host.recover()
        expectOperational()
        _ = host.submitOut(wrapper(write8, length: 4096, .out))
        _ = host.wait(host.submitOut([UInt8](repeating: 5, count: 1024)))
        host.recover()
        #expect(host.run(read8, in: 4096).status == 0)
    }

    @Test func `waiting transfers are cancelled at once`() {
        let data = host.submitIn(4096)
        host.device.cancel(data)
        #expect(host.port.completions[data]?.status == .cancelled)
        host.device.cancel(data)
        host.device.cancel(.init(rawValue: 999_999))
        expectOperational()
    }

    @Test func `commands after a port reset wait for a write of the worker`() {
        image.set { $0.nonblocking = .wouldBlock }
        image.shutGate()
        _ = host.submitOut(wrapper(write8, length: 4096, .out))
        let data = host.submitOut([UInt8](repeating: 7, count: 4096))
        let waiting = host.submitIn(13)
        host.device.reset()
        #expect(host.port.completions[data]?.status == .cancelled)
        #expect(host.port.completions[waiting]?.status == .cancelled)
        host.setConfiguration(1)
        image.set { $0.nonblocking = .served }
        let command = host.submitOut(wrapper(read8, length: 4096, .in))
        let read = host.submitIn(4096)
        #expect(!host.isDone(command))
        image.openGate()
        host.waitUntilIdle()
        #expect(host.bytes(read) == [UInt8](repeating: 7, count: 4096))
        #expect(host.port.doubles.isEmpty)
    }

    @Test func `control requests are answered while the worker reads`() {
        image.set { $0.nonblocking = .wouldBlock }
        image.shutGate()
        _ = host.submitOut(wrapper(read8, length: 4096, .in))
        let data = host.submitIn(4096)
        #expect(host.control(0x80, 6, value: 0x0100, length: 18).bytes.count == 18)
        #expect(!host.isDone(data))
        image.openGate()
        #expect(host.wait(data)?.status == .completed)
    }

    @Test func `commands after a transport reset wait for a read of the worker`() {
        image.set { $0.nonblocking = .wouldBlock }
        image.shutGate()
        _ = host.submitOut(wrapper(read8, length: 4096, .in))
        let data = host.submitIn(4096)
        host.recover()
        #expect(host.port.completions[data]?.status == .cancelled)
        let command = host.submitOut(wrapper(read8, length: 4096, .in))
        let again = host.submitIn(4096)
        #expect(!host.isDone(command))
        image.openGate()
        host.waitUntilIdle()
        #expect(host.bytes(again) == pattern)
    }

    @Test
    func `transfers complete in order when the device is unconfigured while the worker reads`() {
        image.set { $0.nonblocking = .wouldBlock }
        image.shutGate()
        _ = host.submitOut(wrapper(read8, length: 4096, .in))
        let data = host.submitIn(4096)
        let waiting = host.submitIn(13)
        host.setConfiguration(0)
        #expect(host.port.completions[data]?.status == .cancelled)
        let late = host.submitIn(13)
        #expect(!host.isDone(waiting) && !host.isDone(late))
        let before = host.port.order.count
        image.openGate()
        host.waitUntilIdle()
        #expect(Array(host.port.order[before...]) == [waiting, late])
        host.setConfiguration(1)
        expectOperational()
    }

    @Test func `a detached device completes no transfer and can be attached again`() {
        image.set { $0.nonblocking = .wouldBlock }
        image.shutGate()
        _ = host.submitOut(wrapper(read8, length: 4096, .in))
        let data = host.submitIn(4096)
        let waiting = host.submitIn(13)
        let before = host.port.order.count
        host.device.detached()
        let port = FakePort()
        host.device.attach(to: port)
        image.openGate()
        host.waitUntilIdle()
        #expect(host.port.order.count == before)
        #expect(port.order.isEmpty)
        #expect(!host.isDone(data) && !host.isDone(waiting))
        host.device.detached()
        host.device.attach(to: host.port)
        host.setConfiguration(1)
        expectOperational()
    }

    // MARK: - Control

    @Test func `Get Max LUN reports one logical unit`() {
        #expect(host.control(0xa1, 0xfe, length: 1) == (.completed, [0]))
    }

    @Test func `class requests with invalid fields are stalled`() {
        #expect(host.control(0xa1, 0xfe, index: 1, length: 1).status == .stalled)
        #expect(host.control(0xa1, 0xfe, value: 1, length: 1).status == .stalled)
        #expect(host.control(0xa1, 0xfe, length: 0).status == .stalled)
        #expect(host.control(0x21, 0xff, length: 1).status == .stalled)
        #expect(host.control(0xa0, 0xfe, length: 1).status == .stalled)
        #expect(host.control(0xc0, 0x01, length: 8).status == .stalled)
    }

    @Test func `without a configuration bulk transfers and class requests fail`() {
        host.setConfiguration(0)
        #expect(host.wait(host.submitOut([1, 2, 3]))?.status == .failed)
        #expect(host.control(0xa1, 0xfe, length: 1).status == .stalled)
        host.setConfiguration(1)
        expectOperational()
    }

    @Test func `an endpoint halted by the host stalls until the halt is cleared`() {
        host.control(0x02, 3, index: 0x81)
        #expect(host.wait(host.submitIn(13))?.status == .stalled)
        host.clearHalt(inEndpoint)
        expectOperational()
    }

    @Test func `transfers of unknown endpoints fail`() {
        let id = host.submit(EndpointAddress(5, .in), .bulk(stream: 0), count: 64)
        #expect(host.port.completions[id]?.status == .failed)
    }
}
