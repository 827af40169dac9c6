// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Isochronous endpoints: service intervals, Frame IDs, missed intervals, empty rings, and errors
/// that do not halt the endpoint (xHCI 4.10.3, 4.11.2.3-4.11.2.5, 4.14.2).
struct IsochronousTests {
    let guest: Guest
    let device = TestDevice()
    let slot: GuestSlot
    let buffer: GuestAddress
    let log = Log()
    var driver: GuestDriver { guest.driver }

    /// The microframes in which transfers were submitted to the device.
    final class Log {
        var microframes: [Int] = []
    }

    init() throws {
        guest = try Guest()
        slot = try guest.plug(device)
        buffer = guest.memory.allocate(0x40000, alignment: 65536)
        answer { $0.direction == .in ? .give(Array(repeating: 7, count: 100_000)) : .accept }
    }

    /// Answers the transfers of all endpoints except the control endpoint, and records their
    /// microframes.
    private func answer(_ body: @escaping (Transfer) -> TestDevice.Answer) {
        let (machine, registers, log) = (guest.machine, guest.registers, log)
        device.onTransfer = { transfer in
            guard transfer.endpoint != .control else { return nil }
            log.microframes.append(Int(machine.read32(registers.microframeIndex)))
            return body(transfer)
        }
    }

    private var now: Int { Int(guest.machine.read32(guest.registers.microframeIndex)) }

    private func trbs(
        _ count: Int, length: Int = 64, _ flags: GuestTRB.Flags = .interruptOnCompletion
    ) -> [GuestTRB] {
        (0..<count).map { .isochronous(buffer + $0 * 2048, length, flags) }
    }

    /// The transfer events of an endpoint in the next `time`.
    private func events(
        of endpoint: GuestEndpoint, after time: Duration = .milliseconds(100)
    ) -> [GuestEvent] {
        driver.takeAll(after: time).filter { $0.isTransfer && $0.endpoint == endpoint.contextIndex }
    }

    // MARK: - Service intervals

    @Test(arguments: [0, 1, 2, 3, 5], [Direction.in, .out])
    func `each TD takes the next service interval`(
        exponent: Int, direction: Direction
    ) throws {
        let endpoint = try slot.configureOne(
            .isochronous(1, direction, interval: exponent))
        let interval = 1 << exponent
        let begin = now
        let addresses = endpoint.submit(trbs(6))
        let events = events(of: endpoint)

        #expect(events.prefix(6).map(\.pointer) == addresses)
        #expect(events.prefix(6).allSatisfy { $0.code == .success && $0.length == 0 })
        #expect(log.microframes.count == 6)
        let first = try #require(log.microframes.first)
        #expect(first % interval == 0)
        #expect(first - begin <= 2 * interval + 1)
        #expect(log.microframes == (0..<6).map { first + $0 * interval })
    }

    @Test func `data is at the TRBs' buffers, and short packets report their residue`() throws {
        let input = try slot.configureOne(.isochronous(1, .in))
        var sizes = [64, 10, 0]
        answer { _ in .give(Array(repeating: 9, count: sizes.removeFirst())) }
        guest.memory.fill(0, at: buffer, count: 8192)
        input.submit(
            trbs(3, [.interruptOnCompletion, .interruptOnShortPacket]))
        let events = events(of: input).prefix(3)

        #expect(events.map(\.code) == [.success, .shortPacket, .shortPacket])
        #expect(events.map(\.length) == [0, 54, 64])
        #expect(guest.memory.bytes(at: buffer, count: 65) == Array(repeating: 9, count: 64) + [0])
        #expect(
            guest.memory.bytes(at: buffer + 2048, count: 11) == Array(repeating: 9, count: 10) + [0]
        )
    }

    @Test func `an empty TD takes a service interval and is an empty packet`() throws {
        let output = try slot.configureOne(.isochronous(1, .out, interval: 1))
        output.submit([
            .isochronous(buffer, 8, .interruptOnCompletion),
            .isochronous(buffer, 0, .interruptOnCompletion),
            .isochronous(buffer, 8, .interruptOnCompletion),
        ])
        #expect(events(of: output).prefix(3).map(\.code) == [.success, .success, .success])
        #expect(device.records.suffix(3).map(\.count) == [8, 0, 8])
        #expect(log.microframes[2] - log.microframes[0] == 4)
    }

    @Test func `a burst and a chain take one service interval`() throws {
        let output = try slot.configureOne(.isochronous(1, .out, maxPacketSize: 1024, maxBurst: 2))
        guest.memory.write((0..<3000).map { UInt8(truncatingIfNeeded: $0) }, at: buffer)
        let addresses = output.submit([
            .isochronous(buffer, 1000, .chain), .normal(buffer + 1000, 1500, .chain),
            .normal(buffer + 2500, 500, .chain),
            .eventData(77, .interruptOnCompletion),
        ])
        let event = try #require(events(of: output).first)
        #expect(addresses.count == 4)
        #expect(event.isEventData && event.parameter == 77 && event.length == 3000)
        #expect(device.records.last?.bytes == (0..<3000).map { UInt8(truncatingIfNeeded: $0) })
        #expect(log.microframes.count == 1)
    }

    @Test func `endpoints keep different service intervals`() throws {
        let endpoints = try slot.configure(
            .isochronous(1, .in, interval: 0), .isochronous(2, .out, interval: 2))
        var microframes: [EndpointAddress: [Int]] = [:]
        let (machine, registers) = (guest.machine, guest.registers)
        device.onTransfer = { transfer in
            let now = Int(machine.read32(registers.microframeIndex))
            microframes[transfer.endpoint, default: []].append(now)
            return transfer.direction == .in ? .give([1]) : .accept
        }
        endpoints[0].submit(trbs(20))
        endpoints[1].submit(trbs(5))
        driver.takeAll(after: .milliseconds(10))
        let fast = try #require(microframes[EndpointAddress(1, .in)])
        let slow = try #require(microframes[EndpointAddress(2, .out)])
        #expect(fast == (0..<20).map { fast[0] + $0 })
        #expect(slow == (0..<5).map { slow[0] + $0 * 4 })
    }

    @Test func `isochronous TDs work in memory that only messages reach`() throws {
        let guest = try Guest(.remote)
        let device = TestDevice { transfer in
            transfer.endpoint == .control
                ? nil : transfer.direction == .in ? .give([1, 2, 3]) : .accept
        }
        let endpoints = try guest.plug(device).configure(
            .isochronous(1, .in), .isochronous(1, .out))
        let buffer = guest.memory.allocate(64)
        guest.memory.write([4, 5], at: buffer + 32)
        endpoints[0].submit(.isochronous(buffer, 3, .interruptOnCompletion))
        endpoints[1].submit(.isochronous(buffer + 32, 2, .interruptOnCompletion))
        #expect(try endpoints[0].event().code == .success)
        #expect(try endpoints[1].event().code == .success)
        #expect(guest.memory.bytes(at: buffer, count: 3) == [1, 2, 3])
        #expect(device.records.last { $0.direction == .out }?.bytes == [4, 5])
    }

    // MARK: - Interrupts and work

    @Test func `BEI leaves one interrupt for a batch, and the controller sleeps until then`() throws
    {
        let input = try slot.configureOne(.isochronous(1, .in))
        let interrupts = guest.machine.interrupts.total
        let services = guest.machine.serviceCount
        var batch = trbs(24, [.interruptOnCompletion, .blockEventInterrupt])
        batch.append(.isochronous(buffer, 64, .interruptOnCompletion))
        input.submit(batch)
        guest.machine.pass(.microseconds(125 * 26))
        driver.collect()
        #expect(events(of: input, after: .zero).count >= 25)
        #expect(guest.machine.interrupts.total - interrupts <= 2)
        #expect(guest.machine.serviceCount - services < 25, "not one wake-up for each microframe")
    }

    @Test func `an idle endpoint causes no service`() throws {
        let input = try slot.configureOne(.isochronous(1, .in))
        input.submit(trbs(2))
        _ = events(of: input)
        let services = guest.machine.serviceCount
        guest.machine.pass(.seconds(1))
        #expect(guest.machine.serviceCount - services <= 2)
    }

    @Test func `with a full event ring, the controller waits for the guest, not for time`()
        throws
    {
        var options = GuestDriver.Options()
        options.eventRings = [[16]]
        let guest = try Guest(options: options)
        let device = TestDevice { $0.endpoint == .control ? nil : .accept }
        let output = try guest.plug(device).configureOne(.isochronous(1, .out))
        guest.driver.updatesDequeuePointer = false
        output.submit(
            trbs(40).map { _ in .isochronous(guest.memory.base, 8, .interruptOnCompletion) })
        guest.machine.pass(.milliseconds(20))
        let services = guest.machine.serviceCount
        guest.machine.pass(.seconds(1))
        #expect(guest.machine.serviceCount - services <= 2)
        #expect(!guest.machine.isSpinning)
        guest.driver.updatesDequeuePointer = true
        guest.driver.acknowledge()
        let events = guest.driver.takeAll().filter { $0.isTransfer && $0.code == .success }
        #expect(events.count == 40)
    }

    @Test func `a device that completes nothing causes no timer`() throws {
        var configuration = GuestEndpointConfiguration.isochronous(1, .out)
        configuration.segments = [512]
        let output = try slot.configureOne(configuration)
        answer { _ in .hold }
        output.submit((0..<300).map { _ in .isochronous(buffer, 8) })
        guest.machine.pass(.milliseconds(100))
        let held = device.pending.count
        #expect(held >= 32 && held <= 300)
        let services = guest.machine.serviceCount
        guest.machine.pass(.seconds(1))
        #expect(guest.machine.serviceCount - services <= 2)
        answer { _ in .accept }
        while device.answerNext(.accept) {}
        _ = driver.takeAll()
        #expect(log.microframes.count == 300)
        #expect(device.pending.isEmpty)
    }

    // MARK: - Frame IDs

    @Test func `a TD waits for its Frame ID`() throws {
        let output = try slot.configureOne(.isochronous(1, .out, interval: 3))
        let frame = now / 8 + 20
        output.submit(
            (0..<3).map {
                .isochronous(buffer, 8, .interruptOnCompletion, frame: frame + $0 * 2)
            })
        #expect(events(of: output).prefix(3).allSatisfy { $0.code == .success })
        #expect(log.microframes.map { $0 / 8 - 1 } == [frame, frame + 2, frame + 4])
    }

    @Test func `eight TDs share a frame at high speed`() throws {
        let input = try slot.configureOne(.isochronous(1, .in))
        let frame = now / 8 + 5
        input.submit(
            (0..<16).map {
                .isochronous(buffer, 8, .interruptOnCompletion, frame: frame + $0 / 8)
            })
        let events = events(of: input)
        #expect(events.prefix(16).allSatisfy { $0.code == .success })
        #expect(log.microframes == (0..<16).map { frame * 8 + 1 + $0 })
    }

    @Test func `Frame IDs work across a wrap of MFINDEX`() throws {
        let output = try slot.configureOne(.isochronous(1, .out, interval: 3))
        let left = 0x4000 - now
        guest.machine.pass(.microseconds(125 * (left - 80)))
        output.submit(
            (0..<20).map {
                .isochronous(buffer, 8, .interruptOnCompletion, frame: (2040 + $0) % 2048)
            })
        let events = events(of: output)
        #expect(events.prefix(20).map(\.code) == Array(repeating: .success, count: 20))
        #expect(log.microframes.map { $0 / 8 } == (0..<20).map { (2041 + $0) % 2048 })
    }

    @Test func `a TD whose frame has passed is a Missed Service Error, and the next TD succeeds`()
        throws
    {
        let output = try slot.configureOne(.isochronous(1, .out, interval: 3))
        guest.machine.pass(.milliseconds(100))
        let frame = now / 8
        let addresses = output.submit([
            .isochronous(buffer, 8, .interruptOnCompletion, frame: frame - 3),
            .isochronous(buffer, 8, .chain, frame: frame - 2),
            .normal(buffer + 8, 8, .interruptOnCompletion),
            .isochronous(buffer, 8, .interruptOnCompletion, frame: frame + 3),
        ])
        let events = events(of: output).prefix(3)
        #expect(events.map(\.code) == [.missedService, .missedService, .success])
        #expect(events.map(\.pointer) == [addresses[0], addresses[2], addresses[3]])
        #expect(log.microframes.map { $0 / 8 - 1 } == [frame + 3])
        #expect(output.context.state == .running)
    }

    @Test func `a Frame ID may be 895 frames ahead and no more`() throws {
        let output = try slot.configureOne(.isochronous(1, .out, interval: 3))
        let frame = now / 8
        output.submit(.isochronous(buffer, 8, .interruptOnCompletion, frame: frame + 895))
        #expect(try output.event(limit: .seconds(2)).code == .success)
        output.submit(.isochronous(buffer, 8, .interruptOnCompletion, frame: now / 8 + 897))
        _ = driver.takeAll(after: .zero)
        let late = try slot.configureOne(.isochronous(2, .out, interval: 3))
        late.submit(.isochronous(buffer, 8, .interruptOnCompletion, frame: now / 8 + 897))
        #expect(try late.event().code == .missedService)
    }

    // MARK: - Empty rings

    @Test(arguments: [Direction.in, .out])
    func `an empty ring is reported once, and the doorbell restarts the endpoint`(
        direction: Direction
    ) throws {
        let endpoint = try slot.configureOne(.isochronous(1, direction))
        let code: GuestEvent.Code = direction == .in ? .ringOverrun : .ringUnderrun
        for _ in 1...2 {
            endpoint.submit(trbs(3))
            let events = events(of: endpoint)
            #expect(events.map(\.code) == [.success, .success, .success, code])
            #expect(events.last?.pointer == endpoint.ring.enqueuePointer)
            #expect(events.last?.length == 0)
            #expect(endpoint.context.state == .running)
        }
    }

    @Test func `a doorbell without a TD schedules nothing`() throws {
        let endpoint = try slot.configureOne(.isochronous(1, .in))
        endpoint.ringDoorbell()
        #expect(events(of: endpoint).isEmpty)
    }

    /// The host may delay this process: TDs that were queued in time must not be lost.
    @Test func `service intervals that passed while the controller slept are caught up with`()
        throws
    {
        let output = try slot.configureOne(.isochronous(1, .out))
        output.submit(trbs(30))
        guest.machine.pass(.microseconds(125 * 4))
        guest.machine.loop.advance(to: guest.machine.now + .microseconds(125 * 20))
        let before = device.records.count
        guest.machine.turn()
        guest.machine.turn()
        #expect(device.records.count - before >= 19)
        let events = events(of: output)
        #expect(events.prefix(30).map(\.code) == Array(repeating: .success, count: 30))
        let first = try #require(log.microframes.first)
        #expect(log.microframes.last == first + 29, "the rate is kept")
    }

    // MARK: - Errors

    @Test func `errors do not halt an isochronous endpoint`() throws {
        let input = try slot.configureOne(.isochronous(1, .in))
        var answers: [TestDevice.Answer] = [
            .end(.failed, transferred: 0), .end(.stalled, transferred: 0),
            .end(.babbled, transferred: 64), .give(Array(repeating: 1, count: 64)),
            .end(.babbled, transferred: 1024),
        ]
        answer { _ in answers.removeFirst() }
        input.submit(trbs(4))
        input.submit(.isochronous(buffer, 1024, .interruptOnCompletion))
        #expect(
            events(of: input).prefix(5).map(\.code) == [
                .usbTransactionError, .usbTransactionError, .isochronousBufferOverrun, .success,
                .babbleDetected,
            ])
        #expect(input.context.state == .running)
    }

    @Test
    func `a TD larger than Max ESIT Payload is a Bandwidth Overrun, and the endpoint runs on`()
        throws
    {
        let output = try slot.configureOne(.isochronous(1, .out, maxPacketSize: 200, maxBurst: 1))
        output.submit([
            .isochronous(buffer, 400, .interruptOnCompletion),
            .isochronous(buffer, 401, .interruptOnCompletion),
            .isochronous(buffer, 1, .interruptOnCompletion),
        ])
        #expect(
            events(of: output).prefix(3).map(\.code) == [.success, .bandwidthOverrun, .success])
        #expect(device.records.suffix(3).map(\.count) == [400, 400, 1])
        #expect(output.context.state == .running)
    }

    @Test func `a buffer outside guest memory is a Data Buffer Error, and the endpoint runs on`()
        throws
    {
        let output = try slot.configureOne(.isochronous(1, .out))
        output.submit([
            .isochronous(guest.nowhere, 8, .interruptOnCompletion),
            .isochronous(buffer, 8, .interruptOnCompletion),
        ])
        #expect(events(of: output).prefix(2).map(\.code) == [.dataBufferError, .success])
    }

    @Test(arguments: [
        GuestTRB.normal(GuestAddress(0), 8, .interruptOnCompletion),
        GuestTRB(.setupStage, flags: .interruptOnCompletion), GuestTRB(.init(rawValue: 63)),
    ])
    func `TRBs of other endpoint types are a TRB Error`(trb: GuestTRB) throws {
        let output = try slot.configureOne(.isochronous(1, .out))
        output.submit([.isochronous(buffer, 8, .interruptOnCompletion), trb])
        #expect(events(of: output).prefix(2).map(\.code) == [.success, .trbError])
        #expect(output.context.state == .error)
        try guest.expectRecovery()
    }

    @Test func `No Op and Link TRBs take no service interval`() throws {
        let output = try slot.configureOne(.isochronous(1, .out))
        output.submit([
            .isochronous(buffer, 8), .noOp(.interruptOnCompletion),
            .isochronous(buffer, 8, .interruptOnCompletion),
        ])
        #expect(events(of: output).prefix(2).map(\.code) == [.success, .success])
        #expect(log.microframes[1] - log.microframes[0] == 1)
    }

    // MARK: - Commands

    @Test func `Stop Endpoint requeues TDs that are not due`() throws {
        let output = try slot.configureOne(.isochronous(1, .out, interval: 3))
        let addresses = output.submit(trbs(10))
        guest.machine.pass(.milliseconds(4))
        let done = log.microframes.count
        #expect((1..<10).contains(done))
        #expect(try output.stop().code == .success)
        #expect(output.context.state == .stopped)
        #expect(output.context.dequeuePointer == addresses[done])
        driver.takeAll(after: .milliseconds(20))
        #expect(log.microframes.count == done, "nothing happens while it is stopped")
        #expect(device.cancelled.isEmpty)

        output.ringDoorbell()
        #expect(events(of: output).filter { $0.code == .success }.count == 10 - done)

        output.submit(trbs(3))
        #expect(try output.stop().code == .success)
        #expect(try output.setDequeuePointer().code == .success)
        output.ringDoorbell()
        #expect(events(of: output).isEmpty)
        #expect(log.microframes.count == 10)
    }

    @Test func `Interval is at most 18`() throws {
        _ = slot.prepareConfiguration([.isochronous(1, .out, interval: 18)])
        #expect(try slot.configureCommand().code == .success)
        _ = slot.prepareConfiguration([.isochronous(2, .out, interval: 19)])
        #expect(badInput.contains(try slot.configureCommand().code))
    }

    @Test
    func `with the device unplugged, each TD fails in its interval, and the slot can be disabled`()
        throws
    {
        let output = try slot.configureOne(.isochronous(1, .out))
        output.submit(trbs(20))
        guest.machine.pass(.milliseconds(1))
        guest.machine.detach(device)
        let events = events(of: output)
        #expect(events.contains { $0.code == .usbTransactionError })
        #expect(!guest.machine.isSpinning)
        try slot.disable()
        try guest.expectRecovery()
    }

    // MARK: - Devices that keep isochronous time

    @Test
    func
        `a device that keeps isochronous time gets all TDs at once and times them`()
        throws
    {
        device.keepsIsochronousTime = true
        answer { _ in .hold }
        let output = try slot.configureOne(.isochronous(1, .out))
        let addresses = output.submit(trbs(40))
        guest.machine.turn()
        #expect(device.pending.count == 40)
        #expect(events(of: output).isEmpty)
        for _ in 1...5 { device.answerNext(.accept) }
        #expect(events(of: output).map(\.pointer) == Array(addresses.prefix(5)))
        while device.answerNext(.accept) {}
        let rest = events(of: output)
        #expect(rest.count == 36)
        #expect(rest.last?.code == .ringUnderrun)
        #expect(!guest.machine.isSpinning)
    }

    @Test func `Stop Endpoint cancels the TDs of a device that keeps isochronous time`() throws {
        device.keepsIsochronousTime = true
        answer { _ in .hold }
        let output = try slot.configureOne(.isochronous(1, .out))
        let addresses = output.submit(trbs(8))
        guest.machine.turn()
        device.answerNext(.accept)
        #expect(try output.stop().code == .success)
        let events = events(of: output, after: .zero)
        #expect(events.map(\.code) == [.success, .stopped])
        #expect(output.context.dequeuePointer == addresses[1])
        #expect(device.cancelled.count == 7)
    }
}
