// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Stop Endpoint at every point of a TD (xHCI 4.6.9).
struct StopEndpointTests {
    let guest: Guest
    let device = TestDevice()
    let input: GuestEndpoint
    let output: GuestEndpoint
    let buffer: GuestAddress
    var driver: GuestDriver { guest.driver }

    init() throws {
        guest = try Guest()
        let endpoints = try guest.plug(device).configure(.bulkIn(1), .bulkOut(1))
        input = endpoints[0]
        output = endpoints[1]
        buffer = guest.memory.allocate(8192, boundary: 8192)
        guest.memory.write((0..<1536).map { UInt8(truncatingIfNeeded: $0 / 7) }, at: buffer)
    }

    private var chain: [GuestTRB] {
        [
            .normal(buffer, 512, .chain), .normal(buffer + 512, 512, .chain),
            .normal(buffer + 1024, 512, .interruptOnCompletion),
        ]
    }

    @Test(arguments: [0, 1, 511, 512, 700, 1024, 1535])
    func `the Stopped event has the TRB and the residue of a stopped TD`(moved: Int) throws {
        device.transferredWhenCancelled = moved
        let addresses = input.submit(chain)
        guest.machine.pass(.milliseconds(1))
        let command = try input.stop()
        #expect(command.code == .success)
        let event = try input.event()
        let index = min(moved / 512, 2)
        #expect(event.code == .stopped)
        #expect(event.pointer == addresses[index])
        #expect(event.length == (index + 1) * 512 - moved)
        #expect(input.context.state == .stopped)
        #expect(input.context.dequeuePointer == addresses[index])
        #expect(driver.takeAll().isEmpty)
    }

    @Test func `the stopped event comes before the completion of the command`() throws {
        input.submit(chain)
        guest.machine.pass(.milliseconds(1))
        driver.commandRing.push(
            .command(.stopEndpoint, slot: input.slot, endpoint: input.contextIndex))
        driver.ringDoorbell(slot: 0, target: 0)
        var states: [GuestEndpointContext.State] = []
        driver.onEvent = { _ in states.append(input.context.state) }
        let events = driver.takeAll()
        #expect(events.map(\.kind) == [.transferEvent, .commandCompletion])
        #expect(states == [.stopped, .stopped])
    }

    @Test func `an idle endpoint stops with at most a forced event at its dequeue pointer`() throws
    {
        #expect(try input.stop().code == .success)
        let events = driver.takeAll()
        #expect(events.count <= 1)
        if let event = events.first {
            #expect(event.code == .stoppedLengthInvalid)
            #expect(event.pointer == input.ring.start)
            #expect(event.length == 0)
        }
        #expect(input.context.dequeuePointer == input.ring.start)
        #expect(input.context.state == .stopped)
    }

    @Test func `an endpoint that does not run cannot be stopped`() throws {
        #expect(try input.stop().code == .success)
        #expect(try input.stop().code == .contextStateError)
        device.onTransfer = { _ in .end(.stalled, transferred: 0) }
        output.submit(chain)
        #expect(try output.event().code == .stall)
        #expect(try output.stop().code == .contextStateError)
        #expect(output.context.state == .halted)
    }

    @Test func `completed TDs keep their own events when the endpoint is stopped`() throws {
        var addresses: [GuestAddress] = []
        for _ in 0..<3 {
            addresses.append(input.submit(.normal(buffer, 512, .interruptOnCompletion)))
        }
        guest.machine.pass(.milliseconds(1))
        device.answerNext(.give(Array(repeating: 1, count: 512)))
        #expect(try input.stop().code == .success)
        let events = driver.takeAll()
        #expect(events.first?.pointer == addresses[0])
        #expect(events.first?.code == .success)
        #expect(events.dropFirst().first?.pointer == addresses[1])
        #expect(events.dropFirst().first?.code == .stopped)
        #expect(events.count == 2)
        #expect(input.context.dequeuePointer == addresses[1])
    }

    @Test func `TRBs queued behind the stopped TD wait for the doorbell`() throws {
        input.submit(chain)
        guest.machine.pass(.milliseconds(1))
        try input.stop()
        _ = driver.takeAll()
        input.ring.push(.normal(buffer, 512, .interruptOnCompletion))
        #expect(driver.takeAll().isEmpty)
        #expect(device.pending.isEmpty)
        input.ringDoorbell()
        guest.machine.pass(.milliseconds(1))
        #expect(input.context.state == .running)
        #expect(!device.pending.isEmpty)
    }

    @Test(arguments: [0, 1, 512, 700, 1535])
    func `a stopped TD that is resumed sends every byte once`(moved: Int) throws {
        device.transferredWhenCancelled = moved
        let addresses = output.submit(chain)
        guest.machine.pass(.milliseconds(1))
        try output.stop()
        _ = driver.takeAll()
        device.onTransfer = { _ in .accept }
        output.ringDoorbell()
        let event = try output.event()
        #expect(event.code == .success)
        #expect(event.pointer == addresses[2])
        let parts = device.records.filter { $0.endpoint == EndpointAddress(1, .out) }.map(\.bytes)
        #expect(
            Array(parts[0][..<moved]) + parts.dropFirst().joined()
                == guest.memory.bytes(at: buffer, count: 1536))
    }

    @Test func `a device that does not complete its transfer does not delay the command`() throws {
        device.cancelsAtOnce = false
        input.submit(chain)
        guest.machine.pass(.milliseconds(1))
        let before = guest.machine.now
        #expect(try input.stop().code == .success)
        #expect(guest.machine.now - before <= .milliseconds(100))
        _ = driver.takeAll()
        #expect(device.cancelled.count == 1)
        // Its late completion is ignored.
        device.answerNext(.give(Array(repeating: 9, count: 1536)))
        #expect(driver.takeAll().isEmpty)
        try input.setDequeuePointer()
        device.onTransfer = { _ in .give([4]) }
        #expect(try input.receive(16) == [4])
    }

    /// A guest CPU continues while the controller waits for guest memory.
    @Test func `a doorbell that was rung before the command does not undo it`() throws {
        let guest = try Guest(.remote)
        let device = TestDevice()
        let input = try guest.plug(device, .bulkIn(1))
        #expect(try input.stop().code == .success)
        input.ring.push(.normal(guest.memory.allocate(64), 64, .interruptOnCompletion))
        let driver = guest.driver
        _ = driver.takeAll()
        driver.commandRing.push(.command(.noOpCommand))
        driver.ringDoorbell(slot: 0, target: 0)
        let remote = guest.machine.remote
        remote.onAccess = { access in
            guard access.isWrite else { return }
            remote.onAccess = nil
            input.ringDoorbell()
            driver.commandRing.push(
                .command(.stopEndpoint, slot: input.slot, endpoint: input.contextIndex))
            driver.ringDoorbell(slot: 0, target: 0)
        }
        let completions = driver.takeAll().filter(\.isCommandCompletion)
        #expect(completions.map(\.code) == [.success, .success])
        #expect(input.context.state == .stopped)
        #expect(device.pending.isEmpty)
    }

    @Test func `Stop Endpoint with Suspend (SP) stops the endpoint, too`() throws {
        input.submit(chain)
        guest.machine.pass(.milliseconds(1))
        let event = try driver.command(
            .command(.stopEndpoint, slot: input.slot, endpoint: input.contextIndex, .suspend))
        #expect(event.code == .success)
        #expect(input.context.state == .stopped)
    }

    @Test func `the pointer after whole laps carries the cycle state`() throws {
        device.onTransfer = { _ in .give([1]) }
        for _ in 0..<45 { _ = try input.receive(8) }
        try input.stop()
        #expect(
            input.context.dequeuePointer == input.ring.enqueuePointer
                || !input.ring.enqueueCycle)
        #expect(try input.setDequeuePointer().code == .success)
        for _ in 0..<45 { #expect(try input.receive(8) == [1]) }
    }
}
