// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

@testable import Loopback

/// Configuration 3: sources and sinks of a pattern.
@Suite struct SourceSinkTests {
    static let speeds = ["full", "high", "super"]
    static let packets = ["full": 64, "high": 512, "super": 1024]

    @Test(arguments: speeds, [1, 3])
    func `bulk IN transfers have the pattern, packet by packet`(
        speed: String, pieces: Int
    ) throws {
        let packet = Self.packets[speed] ?? 0
        for count in [0, 1, packet - 1, packet, 3 * packet + 5, 70_001] {
            let host = try LoopbackHost("loopback:speed=\(speed),pattern=mod63")
            host.pieces = pieces
            let id = host.receive(count)
            #expect(host.end(id) == .init(.completed, mod63(count, packet: packet)))
        }
    }

    @Test func `the default pattern is zeroes`() throws {
        let host = try LoopbackHost()
        host.pieces = 2
        #expect(host.end(host.receive(5000)) == .init(.completed, zeroes(5000)))
        #expect(host.end(host.send(zeroes(5000)))?.status == .completed)
    }

    @Test func `without a pattern memory is not written, and any data is accepted`() throws {
        let host = try LoopbackHost("loopback:pattern=none")
        let id = host.receive(5000)
        #expect(host.end(id) == .init(.completed, Array(repeating: 0xa5, count: 5000)))
        #expect(host.end(host.send(ramp(5000)))?.status == .completed)
        #expect(host.end(host.send(ramp(5000)))?.status == .completed)
    }

    @Test func `the pattern of an endpoint follows its packet size`() throws {
        let host = try LoopbackHost(
            "loopback:pattern=mod63,interrupt-packet=70,iso-packet=100")
        let interrupt = host.receive(.interruptIn, 200)
        #expect(host.end(interrupt) == .init(.completed, mod63(200, packet: 70)))
        #expect(host.status(host.send(.interruptOut, mod63(200, packet: 70))) == .completed)
        #expect(!host.isHalted(.interruptOut))
        let iso = host.receive(.isoIn, 60)
        #expect(host.end(iso) == .init(.completed, mod63(60, packet: 100)))
    }

    @Test(arguments: [
        ("loopback:iso-packet=100", 100), ("loopback:iso-packet=1024,iso-mult=3", 3072),
        ("loopback:speed=full,iso-packet=1023", 1023),
        ("loopback:speed=super,iso-burst=4,iso-mult=2", 8192),
    ])
    func `an isochronous transfer has at most the bytes of an interval`(
        specification: String, count: Int
    ) throws {
        let host = try LoopbackHost(specification)
        #expect(host.count(host.receive(.isoIn, 60_000)) == count)
        #expect(host.count(host.receive(.isoIn, count - 1)) == count - 1)
        #expect(host.count(host.receive(.isoIn, 0)) == 0)
        #expect(host.count(host.send(.isoOut, zeroes(count))) == count)
    }

    @Test func `a wrong byte in the last packet stalls the next transfer`() throws {
        let host = try LoopbackHost()
        var bytes = zeroes(1024)
        bytes[1023] = 1
        #expect(host.count(host.send(bytes)) == 1024)
        #expect(host.isHalted(.bulkOut))
        #expect(host.end(host.send(zeroes(8))) == .init(.stalled))
        host.clearHalt(.bulkOut)
        #expect(host.status(host.send(zeroes(8))) == .completed)
    }

    @Test func `a wrong byte in another packet stalls the transfer behind that packet`() throws {
        let host = try LoopbackHost("loopback:pattern=mod63")
        host.pieces = 3
        var bytes = mod63(20_000, packet: 512)
        bytes[17_000] ^= 0x40
        let id = host.send(bytes)
        #expect(host.status(id) == .stalled)
        #expect(host.count(id) == (17_000 / 512 + 1) * 512)
        #expect(host.isHalted(.bulkOut))
        #expect(!host.isHalted(.bulkIn))
    }

    @Test func `wrong isochronous data does not halt the endpoint`() throws {
        let host = try LoopbackHost()
        #expect(host.count(host.send(.isoOut, [1, 2, 3])) == 3)
        #expect(host.count(host.send(.isoOut, [0])) == 1)
        #expect(!host.isHalted(.isoOut))
    }

    @Test(arguments: [Pipe.bulkIn, .bulkOut, .interruptIn, .interruptOut])
    func `a halt that the host has set stays until it is cleared`(pipe: Pipe) throws {
        let host = try LoopbackHost()
        func status() -> Transfer.Status? {
            host.status(pipe.isIn ? host.receive(pipe, 64) : host.send(pipe, zeroes(64)))
        }
        #expect(status() == .completed)
        host.setHalt(pipe)
        #expect(host.isHalted(pipe))
        #expect(status() == .stalled)
        #expect(status() == .stalled)
        host.clearHalt(pipe)
        #expect(!host.isHalted(pipe))
        #expect(status() == .completed)
    }

    @Test func `endpoints exist in their configuration and alternate setting only`() throws {
        let plain = try LoopbackHost(setting: 0)
        #expect(plain.status(plain.receive(8)) == .completed)
        #expect(plain.status(plain.receive(.interruptIn, 8)) == .failed)
        #expect(plain.status(plain.receive(.isoIn, 8)) == .failed)
        let none = try LoopbackHost(configuration: 0)
        #expect(none.status(none.receive(8)) == .failed)
        let looped = try LoopbackHost(configuration: 2)
        #expect(looped.status(looped.send(.interruptOut, [0])) == .failed)
        #expect(
            looped.status(
                looped.submit(EndpointAddress(9, .in), .bulk(stream: 0), count: 8)) == .failed)
    }

    @Test(arguments: [1, 64, 1024, 65535])
    func `request 0x5c returns the data of request 0x5b`(count: Int) throws {
        let host = try LoopbackHost()
        let bytes = ramp(count)
        #expect(host.count(host.control(0x40, 0x5b, data: bytes)) == count)
        let read = host.control(0xc0, 0x5c, length: UInt16(count))
        #expect(host.end(read) == .init(.completed, bytes))
        #expect(host.end(host.control(0xc0, 0x5c, length: 1))?.bytes == Array(bytes.prefix(1)))
        host.device.reset()
        #expect(host.end(host.control(0xc0, 0x5c, length: 8)) == .init(.completed))
    }

    @Test func `other vendor and class requests are stalled`() throws {
        let host = try LoopbackHost()
        #expect(host.status(host.control(0x40, 0x5c)) == .stalled)
        #expect(host.status(host.control(0xc0, 0x5b, length: 1)) == .stalled)
        #expect(host.status(host.control(0x40, 0x5b, value: 1)) == .stalled)
        #expect(host.status(host.control(0x41, 0x5b)) == .stalled)
        #expect(host.status(host.control(0x21, 0x5b)) == .stalled)
    }
}
