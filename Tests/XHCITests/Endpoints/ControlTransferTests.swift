// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Control transfers, stage by stage (xHCI 3.2.9, 4.11.2.2, 6.4.1.2).
struct ControlTransferTests {
    let guest: Guest
    let device = TestDevice()
    let slot: GuestSlot
    let buffer: GuestAddress
    var driver: GuestDriver { guest.driver }

    init() throws {
        guest = try Guest()
        slot = try guest.plug(device)
        buffer = guest.memory.allocate(4096, boundary: 4096)
    }

    private static func reading(_ length: UInt16) -> SetupPacket {
        SetupPacket(requestType: 0xc0, request: 1, value: 2, index: 3, length: length)
    }

    private static func writing(_ length: UInt16) -> SetupPacket {
        SetupPacket(requestType: 0x40, request: 1, value: 2, index: 3, length: length)
    }

    private func answer(_ answer: TestDevice.Answer) { device.onTransfer = { _ in answer } }

    // MARK: - Stages

    @Test func `a request without a data stage reaches the device`() throws {
        try slot.control(Self.writing(0))
        let record = try #require(device.records.last)
        #expect(record.setup == Self.writing(0))
        #expect(record.endpoint == .control)
        #expect(record.count == 0)
    }

    @Test(arguments: [1, 7, 8, 64, 65, 4096])
    func `the data stage moves bytes in both directions`(count: Int) throws {
        let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 3) }
        answer(.give(bytes))
        #expect(try slot.control(Self.reading(UInt16(count))) == bytes)
        answer(.accept)
        try slot.control(Self.writing(UInt16(count)), data: bytes)
        #expect(device.records.last?.bytes == bytes)
    }

    @Test(arguments: [0, 1, 63, 64, 99])
    func `a short data stage has its residue in an event, followed by the status stage`(given: Int)
        throws
    {
        answer(.give(Array(repeating: 5, count: given)))
        let addresses = slot.control.submit([
            .setup(Self.reading(100)), .data(buffer, 100, .in, .interruptOnShortPacket),
            .status(.out, .interruptOnCompletion),
        ])
        let data = try slot.control.event()
        #expect(data.code == .shortPacket)
        #expect(data.pointer == addresses[1])
        #expect(data.length == 100 - given)
        let status = try slot.control.event()
        #expect(status.code == .success)
        #expect(status.pointer == addresses[2])
        #expect(status.length == 0)
        #expect(driver.takeAll().isEmpty)
    }

    @Test func `a short data stage without ISP causes no event before the status stage`() throws {
        answer(.give([1, 2, 3]))
        let addresses = slot.control.submit([
            .setup(Self.reading(100)), .data(buffer, 100, .in),
            .status(.out, .interruptOnCompletion),
        ])
        let event = try slot.control.event()
        #expect(event.code == .success)
        #expect(event.pointer == addresses[2])
        #expect(driver.takeAll().isEmpty)
    }

    @Test func `each stage with IOC has an event, in order`() throws {
        answer(.give(Array(repeating: 1, count: 18)))
        let addresses = slot.control.submit([
            .setup(Self.reading(18), .interruptOnCompletion),
            .data(buffer, 18, .in, .interruptOnCompletion), .status(.out, .interruptOnCompletion),
        ])
        let events = driver.takeAll()
        #expect(events.map(\.pointer) == addresses)
        #expect(events.allSatisfy { $0.code == .success && $0.length == 0 })
        #expect(events.allSatisfy { $0.endpoint == 1 && $0.slot == slot.number })
    }

    @Test func `without IOC there is no event`() throws {
        slot.control.submit([.setup(Self.writing(0)), .status(.in)])
        #expect(driver.takeAll().isEmpty)
        #expect(device.records.last?.setup == Self.writing(0))
    }

    @Test func `stages queued with a doorbell each are one transfer`() throws {
        answer(.give([1, 2, 3, 4]))
        slot.control.submit(.setup(Self.reading(4)))
        guest.machine.pass(.milliseconds(1))
        slot.control.submit(.data(buffer, 4, .in, .interruptOnShortPacket))
        guest.machine.pass(.milliseconds(1))
        slot.control.submit(.status(.out, .interruptOnCompletion))
        #expect(try slot.control.event().code == .success)
        #expect(guest.memory.bytes(at: buffer, count: 4) == [1, 2, 3, 4])
        #expect(device.records.filter { $0.setup == Self.reading(4) }.count == 1)
    }

    @Test func `a data stage may be a chain of TRBs`() throws {
        let bytes = (0..<100).map { UInt8($0) }
        answer(.give(bytes))
        let addresses = slot.control.submit([
            .setup(Self.reading(100)), .data(buffer, 60, .in, [.chain, .interruptOnShortPacket]),
            .normal(buffer + 1000, 40, .interruptOnShortPacket),
            .status(.out, .interruptOnCompletion),
        ])
        let event = try slot.control.event()
        #expect(event.code == .success)
        #expect(event.pointer == addresses[3])
        #expect(guest.memory.bytes(at: buffer, count: 60) == Array(bytes[..<60]))
        #expect(guest.memory.bytes(at: buffer + 1000, count: 40) == Array(bytes[60...]))
    }

    @Test func `Event Data in the data stage counts its bytes`() throws {
        answer(.give(Array(repeating: 1, count: 10)))
        slot.control.submit([
            .setup(Self.reading(18)), .data(buffer, 18, .in, [.chain, .evaluateNext]),
            .eventData(0xdada, .interruptOnCompletion), .status(.out, [.chain, .evaluateNext]),
            .eventData(0x5757, .interruptOnCompletion),
        ])
        let data = try slot.control.event()
        #expect(data.isEventData)
        #expect(data.parameter == 0xdada)
        #expect(data.code == .shortPacket)
        #expect(data.length == 10)
        let status = try slot.control.event()
        #expect(status.isEventData)
        #expect(status.parameter == 0x5757)
        #expect(status.code == .success)
    }

    @Test func `immediate data reaches the device`() throws {
        answer(.accept)
        slot.control.submit([
            .setup(Self.writing(4)),
            GuestTRB(.dataStage, parameter: 0x0403_0201, status: 4, flags: .immediateData),
            .status(.in, .interruptOnCompletion),
        ])
        #expect(try slot.control.event().code == .success)
        #expect(device.records.last?.bytes == [1, 2, 3, 4])
    }

    // MARK: - Errors of the device

    @Test(arguments: [
        (Transfer.Status.stalled, GuestEvent.Code.stall),
        (.failed, .usbTransactionError), (.babbled, .babbleDetected),
    ])
    func `an error halts the endpoint before its event is posted`(
        status: Transfer.Status, code: GuestEvent.Code
    ) throws {
        answer(.end(status, transferred: 0))
        let addresses = slot.control.submit([
            .setup(Self.reading(8)), .data(buffer, 8, .in, .interruptOnShortPacket),
            .status(.out, .interruptOnCompletion),
        ])
        var stateAtEvent: GuestEndpointContext.State?
        driver.onEvent = { _ in stateAtEvent = slot.control.context.state }
        let event = try slot.control.event()
        #expect(event.code == code)
        #expect(addresses[1...].contains(event.pointer))
        #expect(stateAtEvent == .halted)
        #expect(driver.takeAll().isEmpty)
        // Linux recovers with Reset Endpoint, Set TR Dequeue Pointer after the TD, and the
        // next request.
        #expect(try slot.control.reset().code == .success)
        #expect(try slot.control.setDequeuePointer().code == .success)
        answer(.give([7]))
        #expect(try slot.control(Self.reading(1)) == [7])
    }

    @Test func `a doorbell does not restart a halted endpoint`() throws {
        answer(.end(.stalled, transferred: 0))
        slot.control.submit([
            .setup(Self.writing(0)), .status(.in, .interruptOnCompletion),
        ])
        #expect(try slot.control.event().code == .stall)
        answer(.accept)
        let count = device.records.count
        slot.control.submit([
            .setup(Self.writing(0)), .status(.in, .interruptOnCompletion),
        ])
        #expect(driver.takeAll().isEmpty)
        #expect(device.records.count == count)
        #expect(slot.control.context.state == .halted)
    }

    @Test func `Stop Endpoint ends a transfer that the device holds`() throws {
        answer(.hold)
        let addresses = slot.control.submit([
            .setup(Self.reading(8)), .data(buffer, 8, .in, .interruptOnShortPacket),
            .status(.out, .interruptOnCompletion),
        ])
        guest.machine.pass(.milliseconds(5))
        #expect(try slot.control.stop().code == .success)
        #expect(slot.control.context.state == .stopped)
        let event = try slot.control.event()
        #expect([.stopped, .stoppedLengthInvalid].contains(event.code))
        #expect(addresses.contains(event.pointer))
        #expect(try slot.control.setDequeuePointer().code == .success)
        answer(.give([7]))
        #expect(try slot.control(Self.reading(1)) == [7])
    }

    // MARK: - Malformed TDs

    /// Malformed TDs. Each ends with a TRB Error or is executed in part, and the next TD works.
    private var malformedTransfers: [(String, [GuestTRB])] {
        let setup = GuestTRB.setup(Self.reading(8))
        return [
            ("status alone", [.status(.in, .interruptOnCompletion)]),
            ("data alone", [.data(buffer, 8, .in, .interruptOnCompletion)]),
            ("normal alone", [.normal(buffer, 8, .interruptOnCompletion)]),
            ("isochronous", [GuestTRB(.isochronous, flags: .interruptOnCompletion)]),
            ("two setups", [setup, setup, .status(.out, .interruptOnCompletion)]),
            (
                "setup with a pointer",
                [
                    GuestTRB(.setupStage, parameter: buffer.rawValue, status: 8),
                    .status(.in, .interruptOnCompletion),
                ]
            ),
            (
                "setup of nine bytes",
                [
                    GuestTRB(.setupStage, status: 9, flags: .immediateData),
                    .status(.in, .interruptOnCompletion),
                ]
            ),
            (
                "data in the wrong direction",
                [
                    setup, .data(buffer, 8, .out), .status(.out, .interruptOnCompletion),
                ]
            ),
            (
                "reserved type",
                [
                    GuestTRB(GuestTRB.Kind(rawValue: 40), flags: .interruptOnCompletion)
                ]
            ),
            ("a command", [GuestTRB(.enableSlot, flags: .interruptOnCompletion)]),
        ]
    }

    @Test func `malformed control TDs do not affect the next one`() throws {
        for (name, trbs) in malformedTransfers {
            slot.control.submit(trbs)
            let events = driver.takeAll(after: .milliseconds(100))
            #expect(events.allSatisfy { $0.isTransfer }, "\(name): \(events)")
            if slot.control.context.state == .running { try slot.control.stop() }
            if slot.control.context.state == .halted { try slot.control.reset() }
            #expect(try slot.control.setDequeuePointer().code == .success, "\(name)")
            _ = driver.takeAll(after: .milliseconds(1))
            answer(.give([7]))
            #expect(try slot.control(Self.reading(1)) == [7], "\(name)")
        }
    }

    @Test(arguments: ["status alone", "data alone", "normal alone", "reserved type"])
    func `a stage without a setup stage is a TRB Error`(name: String) throws {
        let trbs = try #require(malformedTransfers.first { $0.0 == name }?.1)
        let addresses = slot.control.submit(trbs)
        let event = try slot.control.event()
        #expect(event.code == .trbError)
        #expect(event.pointer == addresses[0])
    }

    @Test(arguments: [(8, 100), (100, 8), (0, 8), (8, 0)])
    func `wLength and data stage length may differ, and no byte outside the buffer changes`(
        setupLength: Int, stageLength: Int
    ) throws {
        answer(.give(Array(repeating: 0xee, count: 200)))
        guest.memory.fill(0, at: buffer, count: 300)
        slot.control.submit([
            .setup(Self.reading(UInt16(setupLength))),
            .data(buffer, stageLength, .in, .interruptOnShortPacket),
            .status(.out, .interruptOnCompletion),
        ])
        #expect(!driver.takeAll().isEmpty)
        let moved = guest.memory.bytes(at: buffer, count: 300).prefix { $0 == 0xee }.count
        #expect(moved <= min(setupLength, stageLength))
        try guest.expectRecovery()
    }
}
