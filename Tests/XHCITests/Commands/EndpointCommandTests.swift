// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Configure Endpoint, Evaluate Context, Reset Endpoint, Set TR Dequeue Pointer
/// (xHCI 4.6.6 to 4.6.8, 4.6.10).
struct EndpointCommandTests {
    let guest: Guest
    let device = TestDevice()
    let slot: GuestSlot
    var driver: GuestDriver { guest.driver }

    init() throws {
        guest = try Guest()
        slot = try guest.plug(device)
    }

    // MARK: - Configure Endpoint

    @Test func `Configure Endpoint starts the endpoints and configures the slot`() throws {
        let endpoints = try slot.configure(.bulkIn(1), .bulkOut(2), .interruptIn(3))
        #expect(slot.slotContext.state == .configured)
        #expect(slot.slotContext.contextEntries == 7)
        for endpoint in endpoints {
            #expect(endpoint.context.state == .running)
            #expect(endpoint.context.dequeuePointer == endpoint.ring.start)
            #expect(endpoint.context.dequeueCycle)
        }
        #expect(endpoints.map(\.context.type) == [.bulkIn, .bulkOut, .interruptIn])
        #expect(slot.endpointContext(2).state == .disabled)
    }

    @Test func `all thirty endpoints can be configured`() throws {
        var wanted: [GuestEndpointConfiguration] = []
        for number in UInt8(1)...15 { wanted += [.bulkIn(number), .bulkOut(number)] }
        let endpoints = try slot.configure(wanted)
        #expect(endpoints.allSatisfy { $0.context.state == .running })
        #expect(slot.slotContext.contextEntries == 31)
    }

    @Test
    func `a dropped endpoint is disabled, and without the last one the slot is addressed again`()
        throws
    {
        let endpoints = try slot.configure(.bulkIn(1), .bulkOut(1))
        slot.prepareInput(add: 1, drop: 1 << 3)
        var context = slot.slotContext
        context.words[3] = 0
        slot.writeInput(0, context.words)
        #expect(try slot.configureCommand().code == .success)
        #expect(endpoints[0].context.state == .disabled)
        #expect(endpoints[1].context.state == .running)
        #expect(slot.slotContext.state == .configured)
        slot.prepareInput(add: 1, drop: 1 << 2)
        context.contextEntries = 1
        slot.writeInput(0, context.words)
        #expect(try slot.configureCommand().code == .success)
        #expect(endpoints[1].context.state == .disabled)
        #expect(slot.slotContext.state == .addressed)
    }

    @Test func `an endpoint that is dropped and added starts with its new context`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        endpoint.submit(endpoint.trbs(guest.memory.allocate(64), 64))
        guest.machine.pass(.milliseconds(1))
        #expect(device.pending.count == 1)
        let added = slot.prepareConfiguration([.bulkIn(1)], drop: 1 << 3)
        #expect(try slot.configureCommand().code == .success)
        #expect(device.pending.isEmpty)
        #expect(added[0].context.dequeuePointer == added[0].ring.start)
        device.onTransfer = { _ in .give([5]) }
        #expect(try added[0].receive(10) == [5])
    }

    @Test func `DC disables all endpoints except the default control endpoint`() throws {
        let endpoints = try slot.configure(.bulkIn(1), .bulkOut(1))
        #expect(try slot.configureCommand(.deconfigure).code == .success)
        #expect(endpoints.allSatisfy { $0.context.state == .disabled })
        #expect(slot.slotContext.state == .addressed)
        #expect(slot.control.context.state == .running)
        let again = try slot.configureOne(.bulkIn(1))
        #expect(again.context.state == .running)
    }

    @Test func `DC works on an addressed slot and reads no input context`() throws {
        let event = try driver.command(
            .command(.configureEndpoint, slot: slot.number, .deconfigure))
        #expect(event.code == .success)
        #expect(slot.slotContext.state == .addressed)
    }

    @Test func `Configure Endpoint needs an addressed slot`() throws {
        let other = try driver.enableSlot(port: 2)
        _ = other.prepareConfiguration([.bulkIn(1)])
        #expect(try other.configureCommand().code == .contextStateError)
    }

    @Test(arguments: [1 << 1, 1 << 0] as [UInt32])
    func `the slot context and the control endpoint cannot be dropped`(drop: UInt32) throws {
        _ = slot.prepareConfiguration([.bulkIn(1)], drop: drop)
        let code = try slot.configureCommand().code
        #expect(
            badInput.contains(code) || code == .success && slot.control.context.state == .running)
    }

    @Test func `a reserved EP Type is an error`() throws {
        _ = slot.prepareConfiguration([.bulkIn(1)])
        slot.writeInput(3, [0, 3 << 1 | 512 << 16, 0, 0, 0])
        #expect(badInput.contains(try slot.configureCommand().code))
        #expect(slot.endpointContext(3).state == .disabled)
        #expect(slot.slotContext.state == .addressed)
    }

    @Test func `a refused configuration changes nothing`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        _ = slot.prepareConfiguration([.bulkOut(1), .bulkIn(2)], drop: 1 << 3)
        slot.writeInput(5, [0, 0, 0, 0, 0])
        #expect(try slot.configureCommand().code != .success)
        #expect(endpoint.context.state == .running)
        #expect(slot.endpointContext(2).state == .disabled)
        device.onTransfer = { _ in .give([9]) }
        #expect(try endpoint.receive(4) == [9])
    }

    @Test func `an input context of all ones is an error`() throws {
        guest.memory.fill(0xff, at: slot.inputContext, count: 33 * guest.registers.contextSize)
        #expect(try slot.configureCommand().code != .success)
        #expect(
            try driver.command(
                .command(
                    .evaluateContext, slot: slot.number, parameter: slot.inputContext.rawValue)
            ).code != .success)
        try guest.expectRecovery()
    }

    // MARK: - Evaluate Context

    private func evaluate() throws -> GuestEvent.Code {
        try driver.command(
            .command(
                .evaluateContext, slot: slot.number, parameter: slot.inputContext.rawValue)
        ).code
    }

    @Test func `Evaluate Context changes the packet size of the control endpoint`() throws {
        slot.prepareInput(add: 1 << 1)
        slot.writeInput(
            1,
            GuestEndpointContext(
                type: .control, maxPacketSize: 32, dequeue: guest.memory.base
            ).words)
        #expect(try evaluate() == .success)
        #expect(slot.control.context.maxPacketSize == 32)
        #expect(slot.control.context.dequeuePointer == slot.control.ring.start)
        #expect(slot.control.context.state == .running)
    }

    @Test func `Evaluate Context changes exit latency and interrupter of the slot`() throws {
        var wanted = slot.slotContext
        wanted.maxExitLatency = 0x123
        wanted.interrupter = 3
        wanted.words[0] = 0
        wanted.words[3] = 0
        slot.prepareInput(add: 1)
        slot.writeInput(0, wanted.words)
        #expect(try evaluate() == .success)
        #expect(slot.slotContext.maxExitLatency == 0x123)
        #expect(slot.slotContext.interrupter == 3)
        #expect(slot.slotContext.state == .addressed)
        #expect(slot.slotContext.rootHubPort == slot.port)
        #expect(slot.slotContext.contextEntries == 1)
    }

    @Test func `Evaluate Context fails in the Enabled state`() throws {
        let other = try driver.enableSlot(port: 2)
        other.prepareInput(add: 1)
        let event = try driver.command(
            .command(
                .evaluateContext, slot: other.number, parameter: other.inputContext.rawValue))
        #expect(event.code == .contextStateError)
    }

    // MARK: - Reset Endpoint and Set TR Dequeue Pointer

    @Test func `only a halted endpoint can be reset`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        #expect(try endpoint.reset().code == .contextStateError)
        try endpoint.stop()
        #expect(try endpoint.reset().code == .contextStateError)
        #expect(endpoint.context.state == .stopped)
    }

    @Test func `only a stopped endpoint accepts Set TR Dequeue Pointer`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        #expect(try endpoint.setDequeuePointer().code == .contextStateError)
        device.onTransfer = { _ in .end(.stalled, transferred: 0) }
        endpoint.submit(endpoint.trbs(guest.memory.allocate(8), 8))
        #expect(try endpoint.event().code == .stall)
        #expect(endpoint.context.state == .halted)
        #expect(try endpoint.setDequeuePointer().code == .contextStateError)
        #expect(try endpoint.reset().code == .success)
        #expect(endpoint.context.state == .stopped)
        #expect(try endpoint.setDequeuePointer().code == .success)
        #expect(endpoint.context.state == .stopped)
        #expect(endpoint.context.dequeuePointer == endpoint.ring.enqueuePointer)
        #expect(endpoint.context.dequeueCycle == endpoint.ring.enqueueCycle)
        device.onTransfer = { _ in .give([1]) }
        #expect(try endpoint.receive(8) == [1])
        #expect(endpoint.context.state == .running)
    }

    @Test func `Set TR Dequeue Pointer skips queued TDs`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        try endpoint.stop()
        endpoint.ring.push(endpoint.trbs(guest.memory.allocate(8), 8))
        let wanted = endpoint.ring.push(endpoint.trbs(guest.memory.allocate(8), 8))
        #expect(try endpoint.setDequeuePointer(wanted[0], cycle: true).code == .success)
        device.onTransfer = { _ in .give([1]) }
        endpoint.ringDoorbell()
        #expect(try endpoint.event().pointer == wanted[0])
        #expect(driver.takeAll().isEmpty)
    }

    @Test func `Set TR Dequeue Pointer may change the ring and the cycle state`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        try endpoint.stop()
        let other = GuestRing(guest.memory, segmentSizes: [3, 5])
        endpoint.replaceRing(other)
        #expect(try endpoint.setDequeuePointer().code == .success)
        device.onTransfer = { _ in .give([1]) }
        for _ in 0..<20 { #expect(try endpoint.receive(8) == [1]) }
    }

    @Test func `commands for a disabled endpoint fail`() throws {
        for kind: GuestTRB.Kind in [.resetEndpoint, .stopEndpoint, .setDequeuePointer] {
            let event = try driver.command(
                .command(
                    kind, slot: slot.number, endpoint: 9,
                    parameter: guest.memory.base.rawValue | 1))
            #expect(disabledEndpoint.contains(event.code), "\(kind)")
            for endpoint in [0] {
                let event = try driver.command(
                    .command(kind, slot: slot.number, endpoint: endpoint))
                #expect(event.code != .success, "\(kind) of endpoint 0")
            }
        }
    }

    @Test func `the controller survives a dequeue pointer outside guest memory`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        try endpoint.stop()
        _ = try endpoint.setDequeuePointer(guest.nowhere)
        endpoint.ringDoorbell()
        _ = driver.takeAll()
        try guest.expectRecovery()
    }

    @Test func `doorbells of disabled slots and endpoints are ignored`() throws {
        _ = try slot.configureOne(.bulkIn(1))
        for number in 0...guest.registers.slots {
            for target in 0...255
            where number != 0 && !(number == slot.number && [1, 3].contains(target)) {
                driver.ringDoorbell(slot: number, target: target, stream: target)
            }
        }
        #expect(driver.takeAll().isEmpty)
        #expect(guest.answersCommands)
    }
}
