// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Transfer errors: completion codes, endpoint states and recovery (xHCI 4.8.3, 4.10.2, 4.6.8).
struct TransferErrorTests {
    let guest: Guest
    let device = TestDevice()
    let endpoint: GuestEndpoint
    let buffer: GuestAddress
    var driver: GuestDriver { guest.driver }

    static let errors: [(Transfer.Status, GuestEvent.Code)] = [
        (.stalled, .stall), (.babbled, .babbleDetected), (.failed, .usbTransactionError),
    ]

    init() throws {
        guest = try Guest()
        endpoint = try guest.plug(device, .bulkIn(1))
        buffer = guest.memory.allocate(4096, boundary: 4096)
    }

    /// Guest memory that only messages reach needs staging memory, whose total the guest must not
    /// control.
    @Test func `staging memory is limited in total`() throws {
        let guest = try Guest(.remote)
        let device = TestDevice { $0.endpoint == .control ? nil : .hold }
        let endpoints = try guest.plug(device).configure(
            (1...5).map { .bulkIn($0, segments: [1024]) })
        let buffer = guest.memory.allocate(65536, alignment: 65536)
        let large =
            Array(repeating: GuestTRB.normal(buffer, 65536, .chain), count: 999)
            + [.normal(buffer, 65536, .interruptOnCompletion)]
        for endpoint in endpoints { endpoint.submit(large) }
        let events = guest.driver.takeAll(after: .milliseconds(1))
        #expect(events.map(\.code) == [.dataBufferError])
        #expect(events.first?.endpoint == endpoints.last?.contextIndex)
        // The staging memory is free again when the other transfers have completed.
        while device.answerNext(.give([1])) {}
        guest.driver.takeAll(after: .milliseconds(1))
        device.onTransfer = { $0.endpoint == .control ? nil : .give([7]) }
        #expect(try endpoints[0].receive(10) == [7])
    }

    @Test(arguments: errors)
    func `an error has an event without IOC`(
        status: Transfer.Status, code: GuestEvent.Code
    ) throws {
        device.onTransfer = { _ in .end(status, transferred: 0) }
        let address = endpoint.submit(.normal(buffer, 512))
        let event = try endpoint.event()
        #expect(event.code == code)
        #expect(event.pointer == address)
        #expect(event.length == 512)
    }

    @Test(arguments: errors)
    func `the endpoint context is halted at the failed TRB before the event is posted`(
        status: Transfer.Status, code: GuestEvent.Code
    ) throws {
        device.onTransfer = { _ in .end(status, transferred: 700) }
        let addresses = endpoint.submit([
            .normal(buffer, 512, .chain), .normal(buffer + 512, 512, .chain),
            .normal(buffer + 1024, 512, .interruptOnCompletion),
        ])
        var context: GuestEndpointContext?
        driver.onEvent = { _ in context = endpoint.context }
        let event = try endpoint.event()
        #expect(event.code == code)
        #expect(event.pointer == addresses[1])
        #expect(event.length == 1024 - 700)
        #expect(context?.state == .halted)
        #expect(context.map { addresses.contains($0.dequeuePointer) } == true)
        #expect(driver.takeAll().isEmpty)
    }

    @Test func `TDs after a failed one are not executed`() throws {
        endpoint.submit(.normal(buffer, 512, .interruptOnCompletion))
        endpoint.submit(.normal(buffer + 512, 512, .interruptOnCompletion))
        guest.machine.pass(.milliseconds(1))
        device.answerNext(.end(.stalled, transferred: 0))
        while device.answerNext(.give([1])) {}
        let events = driver.takeAll()
        #expect(events.map(\.code) == [.stall])
        #expect(device.pending.isEmpty)
    }

    @Test func `after a stall the driver can skip the TD`() throws {
        device.onTransfer = { _ in .end(.stalled, transferred: 0) }
        endpoint.submit(.normal(buffer, 512, .interruptOnCompletion))
        #expect(try endpoint.event().code == .stall)
        let next = endpoint.ring.push(.normal(buffer, 512, .interruptOnCompletion))
        #expect(try endpoint.reset().code == .success)
        #expect(endpoint.context.state == .stopped)
        #expect(try endpoint.setDequeuePointer(next, cycle: true).code == .success)
        device.onTransfer = { _ in .give([1, 2]) }
        endpoint.ringDoorbell()
        let event = try endpoint.event()
        #expect(event.pointer == next)
        #expect(event.code == .shortPacket)
    }

    @Test func `a soft retry (TSP) executes the same TD again`() throws {
        device.onTransfer = { _ in .end(.failed, transferred: 0) }
        let address = endpoint.submit(.normal(buffer, 512, .interruptOnCompletion))
        for _ in 0..<3 {
            let event = try endpoint.event()
            #expect(event.code == .usbTransactionError)
            #expect(event.pointer == address)
            #expect(try endpoint.reset(preservingTransferState: true).code == .success)
            endpoint.ringDoorbell()
        }
        #expect(try endpoint.event().code == .usbTransactionError)
        device.onTransfer = { _ in .give(Array(repeating: 3, count: 512)) }
        #expect(try endpoint.reset(preservingTransferState: true).code == .success)
        endpoint.ringDoorbell()
        let event = try endpoint.event()
        #expect(event.code == .success)
        #expect(event.pointer == address)
    }

    @Test func `an error of one endpoint does not affect others`() throws {
        let other = try guest.plug(TestDevice { _ in .give([4]) }, .bulkIn(1))
        device.onTransfer = { _ in .end(.stalled, transferred: 0) }
        endpoint.submit(.normal(buffer, 512, .interruptOnCompletion))
        #expect(try other.receive(8) == [4])
        #expect(try endpoint.event().code == .stall)
    }

    // MARK: - Invalid completions

    @Test(arguments: [-1, Int.min, 513, Int.max])
    func `impossible lengths from a device are clamped`(length: Int) throws {
        device.onTransfer = { _ in .end(.completed, transferred: length) }
        endpoint.submit(.normal(buffer, 512, [.interruptOnCompletion, .interruptOnShortPacket]))
        let event = try endpoint.event()
        #expect((0...512).contains(event.length))
    }

    @Test func `a duplicate completion and one of an unknown transfer are ignored`() throws {
        var transfers: [Transfer] = []
        device.onTransfer = { transfer in
            transfers.append(transfer)
            return .give([1])
        }
        #expect(try endpoint.receive(8) == [1])
        let transfer = try #require(transfers.last)
        device.complete(transfer.completion(.completed, transferred: 1))
        device.complete(transfer.completion(.stalled))
        device.complete(.init(id: .init(rawValue: .max), status: .failed, transferred: 1))
        #expect(driver.takeAll().isEmpty)
        #expect(endpoint.context.state == .running)
        #expect(try endpoint.receive(8) == [1])
    }

    @Test func `after an unplug transfers fail and the slot can be disabled`() throws {
        endpoint.submit(.normal(buffer, 512, .interruptOnCompletion))
        guest.machine.pass(.milliseconds(1))
        device.answerNext(.end(.disconnected, transferred: 0))
        device.disconnect()
        let events = driver.takeAll()
        #expect(events.contains { $0.isPortChange })
        #expect(events.filter { $0.isTransfer }.allSatisfy { $0.code == .usbTransactionError })
        let stopped = try endpoint.stop()
        #expect([.success, .contextStateError].contains(stopped.code))
        try driver.succeed(.command(.disableSlot, slot: endpoint.slot))
        try guest.expectRecovery()
    }

    // MARK: - Memory errors

    @Test func `a transfer with a buffer outside guest memory fails`() throws {
        device.onTransfer = { _ in .give([1]) }
        endpoint.submit(.normal(guest.nowhere, 512, .interruptOnCompletion))
        let events = driver.takeAll()
        #expect(guest.hasFailed || events.contains { $0.isTransfer && $0.code != .success })
        try guest.expectRecovery()
    }

    @Test func `a transfer with a buffer that wraps around the address space fails`() throws {
        device.onTransfer = { _ in .give([1]) }
        endpoint.submit(.normal(GuestAddress(.max - 10), 512, .interruptOnCompletion))
        let events = driver.takeAll()
        #expect(guest.hasFailed || events.contains { $0.isTransfer && $0.code != .success })
        try guest.expectRecovery()
    }

    @Test func `read-only memory is valid for OUT and an error for IN`() throws {
        let readOnly: UInt64 = 0x9_0000_0000
        try guest.machine.bus.map(
            guest.memory.descriptor(), offset: 0, count: 65536, at: GuestAddress(readOnly),
            writable: false)
        device.onTransfer = { $0.direction == .in ? .give([1]) : .accept }
        let output = try guest.plug(device2, .bulkOut(2))
        output.submit(.normal(GuestAddress(readOnly), 512, .interruptOnCompletion))
        #expect(try output.event().code == .success)
        endpoint.submit(.normal(GuestAddress(readOnly), 512, .interruptOnCompletion))
        let events = driver.takeAll()
        #expect(guest.hasFailed || events.contains { $0.isTransfer && $0.code != .success })
        try guest.expectRecovery()
    }

    private let device2 = TestDevice(.superSpeed) { $0.endpoint == .control ? nil : .accept }
}
