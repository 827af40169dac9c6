// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Control requests whose Data Stage is queued in several TDs, each after the previous one has
/// completed (xHCI 4.11.2.2). FreeBSD does so with more than 1024 bytes.
struct SplitDataStageTests {
    let guest: Guest
    let device = TestDevice()
    let slot: GuestSlot
    let buffer: GuestAddress
    var driver: GuestDriver { guest.driver }
    var control: GuestEndpoint { slot.control }

    init() throws {
        guest = try Guest()
        slot = try guest.plug(device)
        buffer = guest.memory.allocate(8192, boundary: 8192)
        guest.memory.fill(0xa5, at: buffer, count: 8192)
    }

    private static let reading = SetupPacket(
        requestType: 0xc0, request: 1, value: 2, index: 3, length: 3000)
    private static let writing = SetupPacket(
        requestType: 0x40, request: 1, value: 2, index: 3, length: 3000)
    private let bytes = (0..<3000).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) }
    /// The flags of each data TD.
    private let flags: GuestTRB.Flags = [.interruptOnCompletion, .interruptOnShortPacket]

    /// The requests that reached the device, in either direction.
    private var requests: [TestDevice.Record] {
        device.records.filter { $0.setup == Self.reading || $0.setup == Self.writing }
    }

    private func answer(_ answer: TestDevice.Answer) { device.onTransfer = { _ in answer } }

    /// Queues TRBs, rings the doorbell and collects the events.
    private func run(_ trbs: GuestTRB...) -> (events: [GuestEvent], addresses: [GuestAddress]) {
        let addresses = control.submit(trbs)
        return (driver.takeAll(), addresses)
    }

    /// Queues the Setup Stage and a data TD of 1024 bytes, which completes with one event.
    private func begin(_ setup: SetupPacket) throws {
        let first = run(.setup(setup), .data(buffer, 1024, setup.direction, flags))
        #expect(first.events.map(\.code) == [.success])
        #expect(first.events.first?.pointer == first.addresses[1])
    }

    /// Expects that another request succeeds.
    private func expectUsable() throws {
        answer(.give([7, 8]))
        let packet = SetupPacket(requestType: 0xc0, request: 9, value: 0, index: 0, length: 2)
        #expect(try slot.control(packet) == [7, 8])
    }

    private func recover() throws {
        #expect(control.context.state == .halted)
        #expect(try control.reset().code == .success)
        #expect(try control.setDequeuePointer().code == .success)
    }

    // MARK: - Data TDs

    @Test(arguments: [3000, 2049, 2048, 1500, 1024, 1023, 0])
    func `each data TD has an event, and the one where the data ends is a short packet`(given: Int)
        throws
    {
        answer(.give(Array(bytes[..<given])))
        var received = 0
        for (number, size) in [1024, 1024, 952].enumerated() {
            let data = GuestTRB.data(buffer + received, size, .in, flags)
            let (events, addresses) = number == 0 ? run(.setup(Self.reading), data) : run(data)
            let expected = min(size, given - received)
            #expect(events.map(\.code) == [expected < size ? .shortPacket : .success])
            #expect(events.first?.pointer == addresses.last)
            #expect(events.first?.length == size - expected)
            received += expected
            if expected < size { break }
        }
        let (events, addresses) = run(.status(.out, .interruptOnCompletion))
        #expect(events.map(\.code) == [.success])
        #expect(events.map(\.pointer) == addresses)
        #expect(guest.memory.bytes(at: buffer, count: given) == Array(bytes[..<given]))
        #expect(guest.memory.bytes(at: buffer + given, count: 1) == [0xa5])
        #expect(requests.map(\.count) == [3000])
        try expectUsable()
    }

    @Test(arguments: SimulatedMachine.MemoryKind.allCases)
    func `OUT data is collected until the status stage`(kind: SimulatedMachine.MemoryKind) throws {
        let guest = try Guest(kind)
        let device = TestDevice()
        let control = try guest.plug(device).control
        let buffer = guest.memory.allocate(3000)
        guest.memory.write(bytes, at: buffer)
        let dataTDs: [[GuestTRB]] = [
            [.setup(Self.writing), .data(buffer, 1024, .out, .interruptOnCompletion)],
            [.normal(buffer + 1024, 1000, .chain), .normal(buffer + 2024, 24, flags)],
            [.normal(buffer + 2048, 952, .interruptOnCompletion)],
        ]
        for trbs in dataTDs {
            let addresses = control.submit(trbs)
            let events = guest.driver.takeAll()
            #expect(events.map(\.code) == [.success])
            #expect(events.first?.pointer == addresses.last)
            #expect(device.records.allSatisfy { $0.setup != Self.writing })
        }
        let status = control.submit(.status(.in, .interruptOnCompletion))
        #expect(guest.driver.takeAll().map(\.pointer) == [status])
        #expect(device.records.last?.setup == Self.writing)
        #expect(device.records.last?.bytes == bytes)
    }

    @Test func `Event Data reports the bytes of each data TD`() throws {
        answer(.give(Array(bytes[..<1500])))
        let first = run(
            .setup(Self.reading), .data(buffer, 1024, .in, .chain),
            .eventData(1, .interruptOnCompletion))
        let second = run(
            .normal(buffer + 1024, 1024, .chain), .eventData(2, .interruptOnCompletion))
        let events = first.events + second.events
        #expect(events.map(\.code) == [.success, .shortPacket])
        #expect(events.map(\.parameter) == [1, 2])
        #expect(events.map(\.length) == [1024, 476])
    }

    @Test func `a data TD may have immediate data`() throws {
        answer(.accept)
        let packet = SetupPacket(requestType: 0x40, request: 1, value: 0, index: 0, length: 6)
        _ = run(
            .setup(packet),
            GuestTRB(
                .dataStage, parameter: 0x0403_0201, status: 4,
                flags: [.immediateData, .interruptOnCompletion]))
        _ = run(.immediate([5, 6], .interruptOnCompletion), .status(.in))
        #expect(device.records.last?.bytes == [1, 2, 3, 4, 5, 6])
    }

    @Test func `data TDs that are all queued at once execute in order`() throws {
        answer(.give(bytes))
        let (events, addresses) = run(
            .setup(Self.reading), .data(buffer, 1024, .in, flags),
            .data(buffer + 1024, 1024, .in, flags), .noOp(.interruptOnCompletion),
            .normal(buffer + 2048, 952, flags), .status(.out, .interruptOnCompletion))
        #expect(events.map(\.pointer) == Array(addresses[1...]))
        #expect(events.allSatisfy { $0.code == .success && $0.length == 0 })
        #expect(guest.memory.bytes(at: buffer, count: 3000) == bytes)
    }

    // MARK: - Requests that are not split

    @Test(arguments: [(3000, true), (1024, false)])
    func `a data stage of wLength bytes, or without IOC, waits for its status stage`(
        length: Int, hasIOC: Bool
    ) throws {
        answer(.give(bytes))
        let flags: GuestTRB.Flags = hasIOC ? self.flags : .interruptOnShortPacket
        #expect(run(.setup(Self.reading), .data(buffer, length, .in, flags)).events.isEmpty)
        #expect(requests.isEmpty)
        let (events, addresses) = run(.status(.out, .interruptOnCompletion))
        #expect(events.map(\.code) == (hasIOC ? [.success, .success] : [.success]))
        #expect(events.last?.pointer == addresses[0])
        #expect(requests.map(\.count) == [length])
    }

    @Test
    func `stages queued at once are one transfer, also with a data stage shorter than wLength`()
        throws
    {
        answer(.give(bytes))
        let (events, addresses) = run(
            .setup(Self.reading), .data(buffer, 1024, .in, flags),
            .status(.out, .interruptOnCompletion))
        #expect(events.map(\.pointer) == Array(addresses[1...]))
        #expect(requests.map(\.count) == [1024])
    }

    @Test func `a new setup stage ends the request in progress`() throws {
        answer(.give(bytes))
        try begin(Self.reading)
        try expectUsable()
        // A data TD without a request in progress is a TRB Error.
        #expect(run(.normal(buffer, 64, flags)).events.map(\.code) == [.trbError])
        #expect(try control.setDequeuePointer().code == .success)
        try expectUsable()
    }

    @Test func `an OUT request that ends before its status stage never reaches the device`() throws
    {
        answer(.accept)
        try begin(Self.writing)
        try expectUsable()
        #expect(requests.isEmpty)
    }

    // MARK: - Errors

    @Test(arguments: [0, 500, 1024, 1500, 2048])
    func `a stall is reported at the data TD where the data ends`(moved: Int) throws {
        device.onTransfer = { transfer in
            transfer.buffer.copy(from: self.bytes)
            return .end(.stalled, transferred: moved)
        }
        let index = min(moved / 1024, 1)
        var last = run(.setup(Self.reading), .data(buffer, 1024, .in, flags))
        if index > 0 {
            #expect(last.events.map(\.code) == [.success])
            last = run(.normal(buffer + 1024, 1024, flags))
        }
        if moved == 2048 {
            #expect(last.events.map(\.code) == [.success])
            last = run(.status(.out, .interruptOnCompletion))
        }
        #expect(last.events.map(\.code) == [.stall])
        #expect(last.events.first?.pointer == last.addresses.last)
        #expect(guest.memory.bytes(at: buffer, count: moved) == Array(bytes[..<moved]))
        #expect(guest.memory.bytes(at: buffer + moved, count: 1) == [0xa5])
        try recover()
        try expectUsable()
    }

    @Test func `a stall of OUT data is reported at the status stage`() throws {
        answer(.end(.stalled, transferred: 0))
        try begin(Self.writing)
        let (events, addresses) = run(
            .normal(buffer, 1976, .interruptOnCompletion), .status(.in, .interruptOnCompletion))
        #expect(events.map(\.code) == [.success, .stall])
        #expect(events.map(\.pointer) == addresses)
        try recover()
        try expectUsable()
    }

    @Test(arguments: [GuestTRB.Kind.setupStage, .isochronous, .eventData, .enableSlot])
    func `a TRB that is no stage is a TRB Error`(kind: GuestTRB.Kind) throws {
        answer(.give(bytes))
        try begin(Self.reading)
        #expect(run(GuestTRB(kind, status: 7)).events.map(\.code) == [.trbError])
        #expect(try control.setDequeuePointer().code == .success)
        try expectUsable()
    }

    @Test func `a data TD in the wrong direction is a TRB Error`() throws {
        answer(.give(bytes))
        try begin(Self.reading)
        #expect(run(.data(buffer, 64, .out, flags)).events.map(\.code) == [.trbError])
        #expect(try control.setDequeuePointer().code == .success)
        try expectUsable()
    }

    @Test(arguments: [Direction.in, .out])
    func `a data TD outside guest memory ends the request, and no wrong data reaches the device`(
        direction: Direction
    ) throws {
        answer(direction == .in ? .give(bytes) : .accept)
        try begin(direction == .in ? Self.reading : Self.writing)
        let nowhere = GuestAddress(0x7_0000_0000)
        #expect(run(.normal(nowhere, 64, flags)).events.map(\.code) == [.dataBufferError])
        #expect(run(.status(.in, flags)).events.map(\.code) == [.trbError])
        #expect(requests.count == (direction == .in ? 1 : 0))
        #expect(try control.setDequeuePointer().code == .success)
        try expectUsable()
    }

    @Test func `no more data than wLength is moved`() throws {
        answer(.give(Array(repeating: 0xee, count: 8192)))
        let packet = SetupPacket(requestType: 0xc0, request: 1, value: 0, index: 0, length: 100)
        _ = run(.setup(packet), .data(buffer, 64, .in, flags))
        var events = run(.normal(buffer + 64, 4096, flags)).events
        events += run(.normal(buffer + 4160, 64, flags), .normal(buffer, 0, flags)).events
        #expect(events.map(\.code) == [.shortPacket, .shortPacket, .success])
        #expect(events.map(\.length) == [4060, 64, 0])
        #expect(guest.memory.bytes(at: buffer, count: 100) == Array(repeating: 0xee, count: 100))
        #expect(guest.memory.bytes(at: buffer + 100, count: 8092).allSatisfy { $0 == 0xa5 })
        #expect(run(.status(.out, flags)).events.map(\.code) == [.success])

        let out = SetupPacket(requestType: 0x40, request: 1, value: 0, index: 0, length: 100)
        answer(.accept)
        _ = run(.setup(out), .data(buffer, 64, .out, flags))
        _ = run(.normal(buffer, 65536, .chain), .normal(buffer, 4096, flags), .status(.in, flags))
        #expect(device.records.last?.bytes.count == 100)
        try expectUsable()
    }

    // MARK: - Stops, resets and halts

    @Test(arguments: [Direction.in, .out])
    func `Stop Endpoint between data TDs resumes at the next one`(direction: Direction) throws {
        guest.memory.write(bytes, at: buffer)
        answer(direction == .in ? .give(bytes) : .accept)
        try begin(direction == .in ? Self.reading : Self.writing)
        let next = control.ring.enqueuePointer
        #expect(try control.stop().code == .success)
        #expect(control.context.dequeuePointer == next)
        let (events, _) = run(
            .normal(buffer + 1024, 1976, flags),
            .status(direction == .in ? .out : .in, .interruptOnCompletion))
        #expect(events.map(\.code) == [.success, .success])
        #expect(requests.count == 1)
        #expect(guest.memory.bytes(at: buffer, count: 3000) == bytes)
        if direction == .out { #expect(requests.last?.bytes == bytes) }
    }

    @Test func `a request that is stopped in flight restarts with its setup stage`() throws {
        answer(.hold)
        device.transferredWhenCancelled = 1500
        let (none, addresses) = run(.setup(Self.reading), .data(buffer, 1024, .in, flags))
        #expect(none.isEmpty)
        #expect(try control.stop().code == .success)
        let stopped = driver.takeAll()
        #expect(stopped.map(\.code) == [.stopped])
        #expect(control.context.dequeuePointer == addresses[0])
        answer(.give(bytes))
        control.ringDoorbell()
        #expect(driver.takeAll().map(\.code) == [.success])
        #expect(requests.count == 2)
        #expect(run(.normal(buffer, 1976, flags), .status(.out)).events.map(\.code) == [.success])
    }

    @Test func `OUT data is sent again after Stop Endpoint in the status stage`() throws {
        guest.memory.write(bytes, at: buffer)
        answer(.hold)
        try begin(Self.writing)
        _ = run(.normal(buffer + 1024, 1976, flags))
        let status = control.submit(.status(.in, .interruptOnCompletion))
        guest.machine.pass(.milliseconds(1))
        #expect(try control.stop().code == .success)
        #expect(driver.takeAll().map(\.pointer) == [status])
        answer(.accept)
        control.ringDoorbell()
        #expect(driver.takeAll().map(\.code) == [.success])
        #expect(requests.map(\.bytes) == [bytes, bytes])
    }

    @Test(arguments: [false, true])
    func `Set TR Dequeue Pointer ends the request in progress`(isAtDevice: Bool) throws {
        answer(isAtDevice ? .hold : .give(bytes))
        if isAtDevice {
            _ = run(.setup(Self.reading), .data(buffer, 1024, .in, flags))
        } else {
            try begin(Self.reading)
        }
        #expect(try control.stop().code == .success)
        #expect(try control.setDequeuePointer().code == .success)
        #expect(device.pending.isEmpty)
        _ = driver.takeAll()
        #expect(run(.normal(buffer, 64, flags)).events.map(\.code) == [.trbError])
        #expect(try control.setDequeuePointer().code == .success)
        try expectUsable()
    }

    @Test(arguments: [false, true])
    func `unplugging the device ends the request in progress`(isAtDevice: Bool) throws {
        answer(isAtDevice ? .hold : .give(bytes))
        if isAtDevice {
            _ = run(.setup(Self.reading), .data(buffer, 1024, .in, flags))
        } else {
            try begin(Self.reading)
            control.ring.push(.normal(buffer + 1024, 1024, flags))
        }
        guest.machine.detach(device)
        control.ringDoorbell()
        let events = driver.takeAll().filter(\.isTransfer)
        #expect(events.map(\.code) == [.usbTransactionError])
        #expect(control.context.state == .halted)
        try slot.disable()
        try guest.expectRecovery()
    }

    @Test func `a port reset ends the request in flight`() throws {
        answer(.hold)
        _ = run(.setup(Self.reading), .data(buffer, 1024, .in, flags))
        driver.writePort(slot.port, .reset)
        let events = driver.takeAll(after: .milliseconds(100)).filter(\.isTransfer)
        #expect(events.map(\.code) == [.usbTransactionError])
        try recover()
        try expectUsable()
    }

    @Test(arguments: [false, true])
    func `Disable Slot or HCRST ends the request in progress`(resets: Bool) throws {
        answer(.hold)
        try begin(Self.writing)
        _ = run(.status(.in))
        if resets {
            try driver.start()
        } else {
            try slot.disable()
        }
        #expect(device.pending.isEmpty)
        try guest.expectRecovery()
    }

    @Test func `a request continues after a halt of the controller`() throws {
        answer(.give(bytes))
        try begin(Self.reading)
        let command = guest.machine.read32(guest.registers.command)
        guest.machine.write32(command & ~GuestDriver.Command.run, at: guest.registers.command)
        guest.machine.pass(.milliseconds(20))
        guest.machine.write32(command, at: guest.registers.command)
        guest.machine.pass(.milliseconds(1))
        let (events, _) = run(.normal(buffer + 1024, 1976, flags), .status(.out, flags))
        #expect(events.map(\.code) == [.success, .success])
        #expect(guest.memory.bytes(at: buffer, count: 3000) == bytes)
    }
}
