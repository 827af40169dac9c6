// SPDX-License-Identifier: Apache-2.0

import GuestKit
import RemoteGuest
import Service
import Testing
import USB
import VFIOClient

/// Clients that connect, disconnect, wait and crash, while devices stay attached.
struct ClientLifeTests {
    private let bench: Bench

    init() throws { bench = try Bench() }

    @Test func `the next client finds a controller as after power-on`() throws {
        let device = TestDevice()
        try bench.server.bus.attach(device)
        let first = try bench.machine()
        let configure = UInt64(GuestRegisters(first).configure)
        try first.client.writeRegister(configure, UInt32(9))
        try first.client.writeConfiguration(4, UInt16(6))
        try first.client.trigger(0)
        first.client.kill()

        let second = try bench.machine()
        #expect(try second.client.readRegister(configure, as: UInt32.self) == 0)
        #expect(try second.client.readConfiguration(4, as: UInt16.self) == 0)
        #expect(second.interruptCount(vector: 0) == 0, "no interrupt is pending")
        let driver = GuestDriver(second)
        try driver.start()
        #expect(try driver.addressNewDevice().slotContext.state == .addressed)
    }

    @Test("a device can be used by one client after the other", arguments: Bench.vmms)
    func reboot(vmm: VMMKind) throws {
        try bench.server.bus.attach(TestDevice())
        let memory = try GuestRAM()
        for _ in 0..<3 {
            let machine = try bench.machine(vmm, memory: memory)
            let driver = GuestDriver(machine)
            try driver.start()
            let slot = try driver.addressNewDevice()
            let descriptor = try slot.control(
                SetupPacket(requestType: 0x80, request: 6, value: 0x100, index: 0, length: 18))
            #expect(descriptor.count == 18)
            #expect(machine.failure == nil)
            machine.client.kill()
        }
    }

    @Test func `a second client waits until the first has disconnected`() throws {
        let first = try bench.client()
        let second = CloudHypervisorClient(wire: try bench.connect(), memory: [])
        second.wire.timeout = .milliseconds(100)
        #expect(throws: WireClient.Failure.self) { try second.start() }
        #expect(try first.readConfiguration(0, as: UInt32.self) == 0x000d_1b36)

        first.kill()
        // The server replies now to the request that the second client has sent before.
        second.wire.timeout = .seconds(30)
        #expect(try second.wire.receiveMessage().command == WireMessage.Command.version)
    }

    @Test func `a client that disconnects while it waits does not affect the next`() throws {
        let first = try bench.client()
        let second = try bench.connect()
        try bench.turn()
        second.close()
        first.kill()
        #expect(try bench.client().readConfiguration(0, as: UInt32.self) == 0x000d_1b36)
    }

    @Test(
        "a client that dies in the middle of a message leaves the server to others",
        arguments: [1, 15, 16, 17, 40])
    func dying(sent: Int) throws {
        let client = try bench.client()
        let message = WireMessage(
            id: 1, command: WireMessage.Command.regionWrite,
            payload: WireMessage.region(
                0, offset: 0, count: 64, data: Array(repeating: 1, count: 64)))
        try client.wire.send(Array(message.bytes[..<sent]))
        client.kill()
        #expect(try bench.client().readConfiguration(0, as: UInt32.self) == 0x000d_1b36)
    }

    @Test func `a client that violates the protocol is disconnected`() throws {
        let wire = try bench.connect()
        try wire.send(Array(repeating: 0xff, count: 64))
        #expect(try wire.isClosedByServer())
        #expect(try bench.client().readConfiguration(0, as: UInt32.self) == 0x000d_1b36)
    }

    @Test func `the memory of a client that has disconnected is not written`() throws {
        let device = TestDevice()
        try bench.server.bus.attach(device)
        let memory = try GuestRAM()
        let first = try bench.machine(memory: memory)
        let driver = GuestDriver(first)
        try driver.start()
        first.client.kill()
        let before = memory.bytes(at: memory.base, count: 65536)
        let second = try bench.machine(memory: GuestRAM())
        try GuestDriver(second).start()
        #expect(memory.bytes(at: memory.base, count: 65536) == before, "old memory is not written")
    }
}
