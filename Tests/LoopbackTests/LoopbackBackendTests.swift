// SPDX-License-Identifier: Apache-2.0

import BackendKit
import DMA
import Foundation
import GuestKit
import Logging
import TestKit
import Testing
import USB

@testable import Loopback

/// The backend with the real controller: specification, transfers, faults, start and stop.
@Suite struct LoopbackBackendTests {
    let guest: Guest

    init() throws { guest = try Guest() }

    private func make(_ text: String) throws -> LoopbackBackend {
        let context = BackendContext(
            loop: guest.machine.loop, logger: .silent)
        let backend = try BackendCatalog(LoopbackBackend.self).makeBackend(text, context: context)
        return try #require(backend as? LoopbackBackend)
    }

    private func start(_ text: String) throws -> LoopbackBackend {
        let backend = try make(text)
        try backend.start(on: guest.machine.controller)
        return backend
    }

    private func reason(_ text: String) -> String {
        do {
            _ = try make(text)
            return ""
        } catch {
            return "\(error)"
        }
    }

    private static let packets = ["full": 64, "high": 512, "super": 1024]

    /// The bulk endpoints, and in configuration 3 the interrupt endpoints.
    private func configure(
        _ slot: GuestSlot, speed: String = "high", configuration: UInt16 = 3
    ) throws -> [GuestEndpoint] {
        var wanted: [GuestEndpointConfiguration] = [.bulkIn(1), .bulkOut(1)]
        if configuration == 3 {
            wanted.append(.interruptIn(2))
            wanted.append(.init(EndpointAddress(2, .out), .interruptOut))
            wanted[3].interval = 3
        }
        for index in wanted.indices {
            wanted[index].maxPacketSize = Self.packets[speed] ?? 0
        }
        let endpoints = try slot.configure(wanted)
        try slot.setConfiguration(configuration)
        if configuration == 3 { try slot.setAlternateSetting(1) }
        return endpoints
    }

    private func recover(_ endpoint: GuestEndpoint, _ slot: GuestSlot, address: UInt16) throws {
        try endpoint.reset()
        try endpoint.setDequeuePointer()
        try slot.control(
            SetupPacket(requestType: 2, request: 1, value: 0, index: address, length: 0))
    }

    // MARK: - Use

    @Test(arguments: ["full", "high", "super"])
    func `a guest reads and writes patterned data`(speed: String) throws {
        let backend = try start("loopback:speed=\(speed),pattern=mod63")
        let slot = try guest.driver.addressNewDevice()
        let endpoints = try configure(slot, speed: speed)
        let bulk = mod63(70_000, packet: Self.packets[speed] ?? 0)
        #expect(try endpoints[0].receive(70_000) == bulk)
        #expect(try endpoints[1].send(bulk) == 70_000)
        let packet = speed == "full" ? 64 : 1024
        #expect(try endpoints[2].receive(200) == mod63(200, packet: packet))
        #expect(try endpoints[3].send(mod63(200, packet: packet)) == 200)
        let data = ramp(4096)
        try slot.control(
            SetupPacket(requestType: 0x40, request: 0x5b, value: 0, index: 0, length: 4096),
            data: data)
        #expect(
            try slot.control(
                SetupPacket(requestType: 0xc0, request: 0x5c, value: 0, index: 0, length: 4096))
                == data)
        #expect(!guest.hasFailed)
        backend.stop()
    }

    @Test(arguments: ["full", "high", "super"])
    func `a guest reads back what it wrote`(speed: String) throws {
        let backend = try start("loopback:speed=\(speed)")
        let endpoints = try configure(
            guest.driver.addressNewDevice(), speed: speed, configuration: 2)
        for count in [1, 1000, 4096, 100_001] {
            #expect(try endpoints[1].send(ramp(count)) == count)
            #expect(try endpoints[0].receive(count) == ramp(count))
        }
        backend.stop()
    }

    @Test func `a guest reads and writes isochronously, and a fault affects one packet`() throws {
        let backend = try start(
            "loopback:pattern=mod63,iso-packet=200,fault=iso-in short bytes=7 after=1")
        let slot = try guest.driver.addressNewDevice()
        var wanted: [GuestEndpointConfiguration] = [
            .isochronous(3, .in, interval: 3), .isochronous(3, .out, interval: 3),
        ]
        for index in wanted.indices { wanted[index].maxPacketSize = 200 }
        let endpoints = try slot.configure(wanted)
        try slot.setConfiguration(3)
        try slot.setAlternateSetting(1)
        let buffer = guest.memory.allocate(600)
        for endpoint in endpoints {
            let flags: GuestTRB.Flags = [.interruptOnCompletion, .interruptOnShortPacket]
            let addresses = endpoint.submit(
                (0..<3).map { (index: Int) in
                    GuestTRB.isochronous(buffer + index * 200, 200, flags)
                })
            let isIn = endpoint.direction == .in
            for (index, address) in addresses.enumerated() {
                let event = try guest.driver.wait("a packet") { $0.pointer == address }
                let isShort = isIn && index == 1
                #expect(event.code == (isShort ? .shortPacket : .success))
                #expect(event.length == (isShort ? 193 : 0))
            }
            if isIn {
                #expect(guest.memory.bytes(at: buffer, count: 200) == mod63(200, packet: 200))
            }
        }
        backend.stop()
    }

    @Test func `a guest cancels a read that the device does not complete`() throws {
        let backend = try start("loopback")
        let endpoints = try configure(guest.driver.addressNewDevice(), configuration: 2)
        endpoints[0].submit(endpoints[0].trbs(guest.memory.allocate(64), 64))
        #expect(try endpoints[0].stop().code == .success)
        try endpoints[0].setDequeuePointer()
        try endpoints[1].send([1, 2, 3])
        #expect(try endpoints[0].receive(64) == [1, 2, 3])
        backend.stop()
    }

    // MARK: - Faults

    @Test func `each fault has its completion code`() throws {
        let backend = try start(
            "loopback:fault=bulk-in stall; bulk-in babble; bulk-in error; bulk-in short bytes=3")
        let slot = try guest.driver.addressNewDevice()
        let endpoint = try configure(slot)[0]
        let buffer = guest.memory.allocate(64)
        for code in [GuestEvent.Code.stall, .babbleDetected, .usbTransactionError] {
            endpoint.submit(endpoint.trbs(buffer, 64))
            #expect(try endpoint.event().code == code)
            #expect(endpoint.context.state == .halted)
            try recover(endpoint, slot, address: 0x81)
        }
        #expect(try endpoint.receive(64).count == 3)
        #expect(try endpoint.receive(64).count == 64)
        backend.stop()
    }

    @Test func `transfers behind an error run once, when the guest submits them again`() throws {
        let backend = try start("loopback:fault=bulk-out error after=1")
        let slot = try guest.driver.addressNewDevice()
        let endpoints = try configure(slot, configuration: 2)
        let buffer = guest.memory.allocate(16)
        guest.memory.write(ramp(16), at: buffer)
        let trbs = (0..<4).map { (index: Int) in
            GuestTRB.normal(buffer + index, 1, .interruptOnCompletion)
        }
        endpoints[1].submit(trbs)
        #expect(try endpoints[1].event().code == .success)
        #expect(try endpoints[1].event().code == .usbTransactionError)
        try recover(endpoints[1], slot, address: 0x01)
        for byte in ramp(4).dropFirst() { try endpoints[1].send([byte]) }
        for byte in ramp(4) { #expect(try endpoints[0].receive(8) == [byte]) }
        backend.stop()
    }

    @Test func `a device that disconnects is attached again after its time`() throws {
        let backend = try start("loopback:fault=bulk-in disconnect reconnect=500")
        let slot = try guest.driver.addressNewDevice()
        let endpoint = try configure(slot)[0]
        endpoint.submit(endpoint.trbs(guest.memory.allocate(8), 8))
        guest.machine.pass(.milliseconds(100))
        #expect(!guest.driver.port(slot.port).contains(.connected))
        try slot.disable()
        guest.machine.pass(.milliseconds(500))
        #expect(guest.driver.port(slot.port).contains(.connected))
        let again = try guest.driver.addressNewDevice()
        #expect(try configure(again)[0].receive(8) == zeroes(8))
        backend.stop()
        guest.machine.pass(.milliseconds(100))
        #expect(!guest.driver.port(again.port).contains(.connected))
    }

    @Test func `a stopped backend does not attach its device again`() throws {
        let backend = try start("loopback:fault=bulk-in disconnect reconnect=500")
        let slot = try guest.driver.addressNewDevice()
        let endpoint = try configure(slot)[0]
        endpoint.submit(endpoint.trbs(guest.memory.allocate(8), 8))
        guest.machine.pass(.milliseconds(100))
        backend.stop()
        guest.machine.pass(.seconds(2))
        #expect(!guest.driver.port(slot.port).contains(.connected))
    }

    @Test func `rules can be replaced while the device is in use`() throws {
        let backend = try start("loopback")
        let slot = try guest.driver.addressNewDevice()
        let endpoint = try configure(slot)[0]
        try backend.replaceFaults("bulk-in short bytes=2")
        #expect(try endpoint.receive(8).count == 2)
        #expect(throws: BackendError.self) { try backend.replaceFaults("bulk-in shrt") }
        try backend.replaceFaults("bulk-in short bytes=4 times=always")
        #expect(try endpoint.receive(8).count == 4)
        try backend.replaceFaults("")
        #expect(try endpoint.receive(8).count == 8)
        backend.stop()
    }

    @Test func `rules are read from a file, and errors name its lines`() throws {
        let path = NSTemporaryDirectory() + "faults-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: path) }
        func write(_ text: String) throws {
            try Data(text.utf8).write(to: URL(filePath: path))
        }
        try write("# two lines\nbulk-in short bytes=2\n")
        let backend = try start("loopback:faults=\(path),fault=bulk-in short bytes=3")
        let endpoint = try configure(guest.driver.addressNewDevice())[0]
        #expect(try (0..<3).map { _ in try endpoint.receive(8).count } == [2, 3, 8])
        backend.stop()

        try write("\n\nbulk-in explode")
        #expect(reason("loopback:faults=\(path)").contains("\(path):3: 'explode' is not a fault"))
        try write(String(repeating: "#", count: LoopbackLimits.faultScript + 1))
        #expect(reason("loopback:faults=\(path)").contains("more than 65536 bytes"))
        try Data([0xff, 0xfe]).write(to: URL(filePath: path))
        #expect(reason("loopback:faults=\(path)").contains("not a text in UTF-8"))
        #expect(reason("loopback:faults=/nowhere/x").contains("cannot read the faults"))
        #expect(reason("loopback:faults=/dev/null").contains("cannot read the faults"))
        #expect(reason("loopback:fault=bulk-in").contains("fault=:1: 'bulk-in' has no fault"))
    }

    @Test func `a bus without a free port is an error that says what to do`() throws {
        let backends = try (0..<9).map { _ in try make("loopback") }
        for backend in backends.prefix(8) { try backend.start(on: guest.machine.controller) }
        #expect(throws: BackendError.self) { try backends[8].start(on: guest.machine.controller) }
        for backend in backends { backend.stop() }
    }
}
