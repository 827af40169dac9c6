// SPDX-License-Identifier: Apache-2.0

import TestKit
import Testing
import USB

@testable import Loopback

/// The effect of each fault on a transfer, and the conditions of rules.
@Suite struct FaultTests {
    private func statuses(
        _ host: LoopbackHost, _ count: Int, clearing pipe: Pipe? = nil
    ) -> [Transfer.Status?] {
        (0..<count).map { _ in
            let status = host.status(host.receive(64))
            if let pipe, status == .stalled { host.clearHalt(pipe) }
            host.pass(1)
            return status
        }
    }

    // MARK: - Conditions

    @Test func `a fault happens once, after the given number of transfers`() throws {
        let host = try LoopbackHost(faults: "bulk-in error after=2")
        #expect(
            statuses(host, 5) == [.completed, .completed, .failed, .completed, .completed])
    }

    @Test func `a fault happens the given number of times`() throws {
        let twice = try LoopbackHost(faults: "bulk-in error times=2")
        #expect(statuses(twice, 3) == [.failed, .failed, .completed])
        let always = try LoopbackHost(faults: "bulk-in error times=always")
        #expect(statuses(always, 3) == [.failed, .failed, .failed])
    }

    @Test func `after-bytes counts the bytes of the rule's endpoint`() throws {
        let host = try LoopbackHost(faults: "bulk-in error after-bytes=128")
        host.send(zeroes(4096))
        #expect(statuses(host, 4) == [.completed, .completed, .failed, .completed])
    }

    @Test func `random faults depend on the seed only`() throws {
        func run(_ rule: String) throws -> [Transfer.Status?] {
            statuses(try LoopbackHost(faults: rule), 200)
        }
        let one = try run("bulk-in error p=0.3 seed=1")
        #expect(try run("bulk-in error p=0.3 seed=1") == one)
        #expect(try run("bulk-in error p=0.3 seed=2") != one)
        #expect((30...90).contains(one.count { $0 == .failed }))
    }

    @Test func `the first of several due rules takes effect, and all of them count the transfer`()
        throws
    {
        let host = try LoopbackHost(
            faults: "bulk-in error after=1; bulk-in stall after=1; bulk-out stall")
        #expect(
            statuses(host, 4, clearing: .bulkIn) == [.completed, .failed, .stalled, .completed])
        #expect(host.status(host.send(zeroes(1))) == .stalled)
    }

    @Test func `counters continue over a reset`() throws {
        let host = try LoopbackHost(faults: "bulk-in stall after=1")
        #expect(statuses(host, 1) == [.completed])
        host.device.reset()
        host.control(0, 9, value: 3)
        #expect(statuses(host, 1) == [.stalled])
        host.device.reset()
        host.control(0, 9, value: 3)
        #expect(statuses(host, 2) == [.completed, .completed])
    }

    // MARK: - Faults

    @Test func `a stall halts the endpoint`() throws {
        let host = try LoopbackHost(faults: "interrupt-in stall")
        #expect(host.status(host.receive(.interruptIn, 8)) == .stalled)
        #expect(host.isHalted(.interruptIn))
        #expect(host.status(host.receive(.interruptIn, 8)) == .stalled)
        host.clearHalt(.interruptIn)
        #expect(host.status(host.receive(.interruptIn, 8)) == .completed)
    }

    @Test func `a control request is stalled by its bRequest`() throws {
        let host = try LoopbackHost(faults: "control stall request=0x5c after=1")
        host.control(0x40, 0x5b, data: [1, 2])
        #expect(host.end(host.control(0xc0, 0x5c, length: 2))?.bytes == [1, 2])
        #expect(host.descriptor(0x0100).count == 18)
        #expect(host.status(host.control(0xc0, 0x5c, length: 2)) == .stalled)
        #expect(host.end(host.control(0xc0, 0x5c, length: 2))?.bytes == [1, 2])
    }

    @Test func `a request that fails has no effect`() throws {
        let host = try LoopbackHost(faults: "control error request=9")
        #expect(host.status(host.control(0, 9, value: 2)) == .failed)
        #expect(host.end(host.control(0x80, 8, length: 1))?.bytes == [3])
    }

    @Test func `an endpoint that NAKs for a time completes transfers in order afterwards`() throws {
        let host = try LoopbackHost(faults: "bulk-in nak ms=50")
        let first = host.receive(8)
        let second = host.receive(8)
        host.pass(49)
        #expect(host.status(first) == nil)
        #expect(host.status(second) == nil)
        // Other endpoints are not affected.
        #expect(host.status(host.send(zeroes(8))) == .completed)
        host.pass(1)
        #expect(host.status(first) == .completed)
        #expect(host.status(second) == .completed)
        #expect(Array(host.port.order.suffix(2)) == [first, second])
    }

    @Test func `a slow endpoint delays each transfer`() throws {
        let host = try LoopbackHost(faults: "bulk-in slow ms=10")
        let ids = [host.receive(8), host.receive(8)]
        host.pass(10)
        #expect(ids.map { host.status($0) } == [.completed, nil])
        host.pass(9)
        #expect(host.status(ids[1]) == nil)
        host.pass(1)
        #expect(host.status(ids[1]) == .completed)
    }

    @Test func `an endpoint can NAK until more transfers wait`() throws {
        let host = try LoopbackHost(faults: "bulk-out nak queued=2")
        let ids = (0..<3).map { index in
            let id = host.send(zeroes(4))
            #expect((host.status(id) == nil) == (index < 2))
            return id
        }
        #expect(ids.allSatisfy { host.status($0) == .completed })
    }

    @Test func `an endpoint can NAK until the host cancels the transfer`() throws {
        let host = try LoopbackHost(faults: "bulk-in nak; control nak request=0x5c")
        let first = host.receive(8)
        let second = host.receive(8)
        host.pass(100_000)
        #expect(host.status(first) == nil)
        host.device.cancel(first)
        #expect(host.status(first) == .cancelled)
        #expect(host.status(second) == .completed)
        let control = host.control(0xc0, 0x5c, length: 8)
        #expect(host.status(control) == nil)
        host.device.cancel(control)
        #expect(host.status(control) == .cancelled)
        #expect(host.descriptor(0x0100).count == 18)
    }

    @Test
    func
        `a reset and a disconnect end transfers that are NAKed, and no timer completes them later`()
        throws
    {
        let host = try LoopbackHost(faults: "bulk-in nak ms=10 times=2")
        let first = host.receive(8)
        host.device.reset()
        #expect(host.status(first) == .cancelled)
        host.control(0, 9, value: 3)
        let second = host.receive(8)
        host.device.detached()
        host.pass(100)
        #expect(host.status(second) == nil)
        #expect(!host.port.hasDoubles)
    }

    @Test func `an IN transfer can be short`() throws {
        let host = try LoopbackHost(
            faults: "bulk-in short bytes=5; iso-in short bytes=0; control short bytes=9")
        #expect(host.end(host.receive(64)) == .init(.completed, zeroes(5)))
        #expect(host.end(host.receive(.isoIn, 64)) == .init(.completed))
        #expect(host.descriptor(0x0100).count == 9)
        #expect(host.descriptor(0x0100).count == 18)
    }

    @Test func `a short IN transfer does not lose looped data`() throws {
        let host = try LoopbackHost(faults: "bulk-in short bytes=5", configuration: 2)
        host.send([1, 2, 3, 4, 5, 6, 7])
        #expect(host.end(host.receive(64))?.bytes == [1, 2, 3, 4, 5])
        #expect(host.end(host.receive(64))?.bytes == [6, 7])
    }

    @Test func `an IN transfer can babble`() throws {
        let host = try LoopbackHost(faults: "bulk-in babble; control babble; iso-in babble")
        #expect(host.status(host.receive(64)) == .babbled)
        #expect(host.status(host.receive(.isoIn, 64)) == .babbled)
        // A request without a data stage cannot babble.
        #expect(host.status(host.control(1, 11, value: 1)) == .completed)
        #expect(host.status(host.control(0x80, 6, value: 0x0100, length: 18)) == .babbled)
    }

    @Test func `after an error the host can cancel the transfers behind it`() throws {
        let host = try LoopbackHost(faults: "bulk-out error after=1", configuration: 2)
        host.send([1])
        let failed = host.send([2])
        let behind = host.send([3])
        #expect(host.status(failed) == .failed)
        #expect(host.status(behind) == nil)
        host.device.cancel(behind)
        host.pass(1)
        host.send([2])
        host.send([3])
        let got = (0..<3).map { _ in host.end(host.receive(8))?.bytes }
        #expect(got == [[1], [2], [3]])
    }

    @Test func `a byte of an IN transfer can be inverted`() throws {
        let host = try LoopbackHost(
            faults: "bulk-in corrupt byte=7; control corrupt request=0x5c byte=1")
        var expected = zeroes(64)
        expected[7] = 0xff
        #expect(host.end(host.receive(64))?.bytes == expected)
        host.control(0x40, 0x5b, data: [1, 2, 3])
        #expect(host.end(host.control(0xc0, 0x5c, length: 3))?.bytes == [1, 0xfd, 3])
        #expect(host.end(host.control(0xc0, 0x5c, length: 3))?.bytes == [1, 2, 3])
    }

    @Test func `an inverted byte of an OUT transfer halts the sink`() throws {
        let host = try LoopbackHost(faults: "bulk-out corrupt byte=600")
        let id = host.send(zeroes(2048))
        #expect(host.status(id) == .stalled)
        #expect(host.count(id) == 1024)
        #expect(host.isHalted(.bulkOut))
    }

    @Test func `looped data is corrupted in both directions, the guest's OUT data is not`() throws {
        let host = try LoopbackHost(
            faults: "bulk-out corrupt byte=1; bulk-in corrupt byte=2 after=1", configuration: 2)
        let id = host.send([1, 2, 3, 4])
        #expect(host.allBytes(id) == [1, 2, 3, 4])
        #expect(host.end(host.receive(8))?.bytes == [1, 0xfd, 3, 4])
        host.send([1, 2, 3, 4])
        #expect(host.end(host.receive(8))?.bytes == [1, 2, 0xfc, 4])
    }

    @Test func `the device can disconnect`() throws {
        let host = try LoopbackHost(faults: "bulk-in disconnect reconnect=30 after=1")
        var reconnections: [Duration?] = []
        host.device.onDisconnect = { reconnections.append($0) }
        #expect(host.status(host.receive(8)) == .completed)
        let id = host.receive(8)
        #expect(host.port.disconnects == 1)
        #expect(reconnections == [.milliseconds(30)])
        host.device.detached()
        #expect(host.status(id) == nil)
    }

    // MARK: - Descriptors

    @Test func `each fault of a device descriptor`() throws {
        let right = try LoopbackHost().descriptor(0x0100)
        func wrong(_ fault: String) throws -> [UInt8] {
            try LoopbackHost(faults: "device-descriptor \(fault)").descriptor(0x0100)
        }
        #expect(try wrong("truncated") == Array(right.prefix(9)))
        #expect(try wrong("overlong") == [255] + right.dropFirst())
        let contradictory = try wrong("contradictory")
        #expect(contradictory[7] == 7 && contradictory[17] == 255)
    }

    @Test func `each fault of a configuration descriptor, which can be limited`() throws {
        let right = try LoopbackHost().descriptor(0x0200)
        func wrong(_ fault: String) throws -> [UInt8] {
            try LoopbackHost(faults: "configuration-descriptor \(fault)").descriptor(0x0200)
        }
        #expect(try wrong("truncated") == Array(right.prefix(right.count / 2)))
        let overlong = try wrong("overlong")
        #expect(overlong.count == right.count)
        #expect(Int(overlong[2]) | Int(overlong[3]) << 8 == right.count + 1024)
        let contradictory = try wrong("contradictory")
        #expect(contradictory[4] == 9 && contradictory[9 + 4] == 30)
        #expect(contradictory[22...23] == [0, 0])
        let host = try LoopbackHost(faults: "configuration-descriptor truncated after=1 times=1")
        #expect(host.descriptor(0x0200) == right)
        #expect(host.descriptor(0x0200).count < right.count)
        #expect(host.descriptor(0x0200) == right)
        #expect(host.descriptor(0x0100).count == 18)
    }

    // MARK: - Log

    @Test func `faults are logged with their effect, up to a limit`() throws {
        let host = try LoopbackHost(faults: "bulk-in error after=1 times=always")
        host.receive(8)
        #expect(host.log.all.isEmpty)
        host.receive(8)
        #expect(
            host.log.all == [
                "notice: loopback test device, high speed: fault "
                    + "'bulk-in error after=1 times=always' on transfer 2: the host sees "
                    + "a transaction error (Linux: -EPROTO, on bulk endpoints after 4 retries)"
            ])
        for _ in 0..<2 * LoopbackLimits.faultsLogged {
            host.pass(1)
            host.receive(8)
        }
        #expect(host.log.all.count == LoopbackLimits.faultsLogged)
    }

    @Test func `wrong bytes are logged, up to a limit`() throws {
        let host = try LoopbackHost()
        for _ in 0..<2 * LoopbackLimits.wrongBytesLogged { host.send(.isoOut, [0, 3]) }
        #expect(host.log.all.count == LoopbackLimits.wrongBytesLogged)
        #expect(
            host.log.all.first?.contains(
                "at endpoint 0x03: byte 1 of the transfer is 3, which is not in the")
                == true)
    }

    // MARK: - Replacing rules

    @Test func `new rules replace the old ones, whose NAKs end`() throws {
        let host = try LoopbackHost(faults: "bulk-in nak; bulk-out slow ms=60000")
        let ids = [host.receive(8), host.receive(8), host.send(zeroes(8)), host.send(zeroes(8))]
        #expect(ids.allSatisfy { host.status($0) == nil })
        // The old rules apply to the first transfer, the new rules to the second.
        host.device.setFaults(try FaultScript.parse("bulk-in error"))
        host.pass(1)
        #expect(ids.map { host.status($0) } == [.completed, .failed, .completed, .completed])
        #expect(!host.port.hasDoubles)
    }
}
