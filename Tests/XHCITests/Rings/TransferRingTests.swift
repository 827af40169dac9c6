// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Transfer rings: Link TRBs, laps, cycle bits, and malformed rings (xHCI 4.9.1, 4.9.2, 4.11.5.1).
struct TransferRingTests {
    let guest: Guest
    let device = TestDevice {
        $0.endpoint == .control ? nil : .give(Array(repeating: 6, count: 64))
    }
    let slot: GuestSlot
    let buffer: GuestAddress
    var driver: GuestDriver { guest.driver }

    init() throws {
        guest = try Guest()
        slot = try guest.plug(device)
        buffer = guest.memory.allocate(4096, boundary: 4096)
    }

    // MARK: - Links

    @Test(arguments: [[2], [3], [2, 2, 2], [5, 2, 7], Array(repeating: 3, count: 64)])
    func `a ring of any segments works for many laps`(segments: [Int]) throws {
        let endpoint = try slot.configureOne(.bulkIn(1, segments: segments))
        for _ in 0..<endpoint.ring.capacity * 3 + 1 {
            let address = endpoint.submit(.normal(buffer, 64, .interruptOnCompletion))
            #expect(try endpoint.event().pointer == address)
        }
    }

    @Test func `a chain continues after a Link TRB`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1, segments: [2, 2, 3, 2]))
        for _ in 0..<6 {
            let addresses = endpoint.submit([
                .normal(buffer, 30, .chain), .normal(buffer + 100, 30, .chain),
                .normal(buffer + 200, 4, .interruptOnCompletion),
            ])
            let event = try endpoint.event()
            #expect(event.pointer == addresses[2])
            #expect(event.code == .success)
            #expect(device.records.last?.count == 64)
        }
    }

    @Test func `a chain continues after a Link TRB without CH`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        let second = guest.memory.allocate(64, alignment: 64)
        let start = endpoint.ring.start
        write([.normal(buffer, 32, .chain), .link(to: second)], at: start)
        write([.normal(buffer + 32, 32, .interruptOnCompletion)], at: second)
        endpoint.ringDoorbell()
        let events = driver.takeAll()
        // Linux does not set CH in the Link TRBs of some controllers. One transfer is correct and a
        // TRB Error acceptable, but there must be an event.
        #expect(!events.isEmpty)
    }

    @Test func `a Link TRB with IOC has an event when it is passed`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1, segments: [2, 2]))
        endpoint.ring.linkFlags = .interruptOnCompletion
        let first = endpoint.submit(.normal(buffer, 64, .interruptOnCompletion))
        #expect(try endpoint.event().pointer == first)
        let second = endpoint.submit(.normal(buffer, 64, .interruptOnCompletion))
        let events = driver.takeAll()
        #expect(events.last?.pointer == second)
        #expect(events.count == 1 || events.first?.pointer == endpoint.ring.start + 16)
        #expect(events.allSatisfy { $0.code == .success })
    }

    @Test func `TDs that each end in a Link TRB with IOC have one data event each`() throws {
        // FreeBSD writes each TD to a segment of its own and links these.
        let endpoint = try slot.configureOne(.bulkIn(1))
        let segments = (0..<6).map { _ in guest.memory.allocate(64, alignment: 64) }
        write([.link(to: segments[0])], at: endpoint.ring.start)
        for (number, segment) in segments.enumerated() {
            let next = number + 1 < segments.count ? segments[number + 1] : buffer + 2048
            write(
                [
                    .normal(buffer, 64, .interruptOnCompletion),
                    .link(to: next, .interruptOnCompletion),
                ], at: segment)
        }
        endpoint.ringDoorbell()
        let events = driver.takeAll()
        let data = events.filter { event in segments.contains(event.pointer) }
        #expect(data.count == 6)
        #expect(data.allSatisfy { $0.code == .success && $0.length == 0 })
        #expect(device.records.filter { $0.endpoint.rawValue == 0x81 }.count == 6)
    }

    /// Writes TRBs with the cycle bit 1.
    private func write(_ trbs: [GuestTRB], at start: GuestAddress) {
        for (number, trb) in trbs.enumerated() {
            guest.memory.store(trb.parameter, at: start + number * 16)
            guest.memory.store(trb.status, at: start + number * 16 + 8)
            guest.memory.store(trb.control | 1, at: start + number * 16 + 12)
        }
    }

    // MARK: - Cycle bits

    @Test func `a TD does not start before its last TRB is written`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        let trb = GuestTRB.normal(buffer, 32, .chain)
        write([trb], at: endpoint.ring.start)
        endpoint.ringDoorbell()
        #expect(driver.takeAll().isEmpty)
        write([.normal(buffer + 32, 32, .interruptOnCompletion)], at: endpoint.ring.start + 16)
        endpoint.ringDoorbell()
        #expect(try endpoint.event().pointer == endpoint.ring.start + 16)
        #expect(
            device.records.filter { $0.endpoint.rawValue == 0x81 }.map(\.count).reduce(0, +) == 64)
    }

    @Test func `TRBs that the driver still owns are not executed`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        endpoint.ring.push([.normal(buffer, 64, .interruptOnCompletion)], handingOver: false)
        endpoint.ringDoorbell()
        #expect(driver.takeAll().isEmpty)
        endpoint.ring.handOver()
        endpoint.ringDoorbell()
        #expect(try endpoint.event().code == .success)
    }

    @Test func `a TRB that the driver rewrites before the doorbell is read as rewritten`() throws {
        // FreeBSD rewrites TRBs that it skips, so no TRB may be loaded ahead of the doorbell.
        let endpoint = try slot.configureOne(.bulkIn(1))
        endpoint.submit(.normal(buffer, 64, .interruptOnCompletion))
        #expect(try endpoint.event().code == .success)
        write([.normal(guest.nowhere, 64, .interruptOnCompletion)], at: endpoint.ring.start + 16)
        write([.noOp(.interruptOnCompletion)], at: endpoint.ring.start + 16)
        endpoint.ringDoorbell()
        #expect(try endpoint.event().code == .success)
    }

    @Test func `each byte of a TRB is loaded once`() throws {
        let guest = try Guest(.remote)
        let device = TestDevice {
            $0.endpoint == .control ? nil : .give(Array(repeating: 1, count: 64))
        }
        let endpoint = try guest.plug(device, .bulkIn(1))
        let buffer = guest.memory.allocate(64)
        let address = endpoint.ring.start
        endpoint.ring.push(.normal(buffer, 64, .interruptOnCompletion))
        var fetched = [Int](repeating: 0, count: 16)
        guest.machine.remote.onAccess = { access in
            guard !access.isWrite else { return }
            for byte in 0..<16
            where (address + byte).rawValue &- access.address.rawValue < UInt64(access.count) {
                fetched[byte] += 1
            }
        }
        endpoint.ringDoorbell()
        #expect(try endpoint.event().code == .success)
        #expect(fetched == Array(repeating: 1, count: 16))
    }

    @Test func `a TRB that changes after it was loaded executes as loaded`() throws {
        let guest = try Guest(.remote)
        let device = TestDevice {
            $0.endpoint == .control ? nil : .give(Array(repeating: 1, count: 64))
        }
        let endpoint = try guest.plug(device, .bulkIn(1))
        let buffer = guest.memory.allocate(64)
        let address = endpoint.ring.push(.normal(buffer, 64, .interruptOnCompletion))
        var seen = 0
        guest.machine.remote.onAccess = { access in
            // From the second access on, the other words of the TRB have changed.
            seen += 1
            guard seen > 1 else { return }
            guest.memory.fill(0xff, at: address, count: 12)
        }
        endpoint.ringDoorbell()
        let events = guest.driver.takeAll()
        #expect(!guest.machine.isSpinning)
        #expect(events.count <= 2)
        guest.machine.remote.onAccess = nil
        try guest.expectRecovery()
    }

    // MARK: - Malformed rings

    /// A Link TRB follows each TRB but the last: a TD of n TRBs has n - 1 Link TRBs.
    @Test(arguments: [257, 258])
    func `a TD has at most 256 Link TRBs`(count: Int) throws {
        let endpoint = try slot.configureOne(
            .bulkIn(1, segments: Array(repeating: 2, count: 300)))
        endpoint.submit(
            (1...count).map { .normal(buffer, 0, $0 < count ? .chain : .interruptOnCompletion) })
        #expect(try endpoint.event().code == (count == 257 ? .success : .trbError))
    }

    private enum Breakage: CaseIterable {
        case linkToItself, linkToItselfToggling, twoLinks, noOpsForEver, chainForEver, emptyForEver
    }

    @Test(arguments: Breakage.allCases)
    private func `endless rings are bounded work`(breakage: Breakage) throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        let other = try guest.plug(
            TestDevice(.superSpeed) { $0.endpoint == .control ? nil : .give([8]) }, .bulkIn(1))
        let start = endpoint.ring.start
        let next = guest.memory.allocate(1024, alignment: 64)
        switch breakage {
        case .linkToItself: write([.link(to: start)], at: start)
        case .linkToItselfToggling: write([.link(to: start, .toggleCycle)], at: start)
        case .twoLinks:
            write([.link(to: next)], at: start)
            write([.link(to: start)], at: next)
        case .noOpsForEver: write([.noOp(), .link(to: start)], at: start)
        case .chainForEver:
            write([.normal(buffer, 64, .chain), .link(to: start, .chain)], at: start)
        case .emptyForEver:
            write([.normal(buffer, 0, .chain), .link(to: start, .chain)], at: start)
        }
        endpoint.ringDoorbell()
        #expect(try other.receive(4) == [8])
        #expect(guest.answersCommands)
        #expect([.success, .contextStateError].contains(try endpoint.stop().code))
        try guest.expectRecovery()
    }

    @Test func `a ring that never ends does not block other endpoints`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        let other = try guest.plug(
            TestDevice(.superSpeed) { $0.endpoint == .control ? nil : .give([8]) }, .bulkIn(1))
        write([.normal(buffer, 64), .link(to: endpoint.ring.start)], at: endpoint.ring.start)
        endpoint.ringDoorbell()
        #expect(try other.receive(4) == [8])
        #expect(try endpoint.stop().code == .success)
        #expect(endpoint.context.state == .stopped)
    }

    @Test func `a TD beyond all limits is an error of the endpoint, not of the controller`() throws
    {
        let endpoint = try slot.configureOne(.bulkIn(1))
        // A segment of chained TRBs that links to itself.
        let count = 4000
        let segment = guest.memory.allocate(count * 16, alignment: 64)
        write(Array(repeating: .normal(buffer, 1, .chain), count: count - 1), at: segment)
        write([.link(to: segment, .chain)], at: segment + (count - 1) * 16)
        write([.link(to: segment, .chain)], at: endpoint.ring.start)
        endpoint.ringDoorbell()
        let events = driver.takeAll()
        #expect(events.map(\.code) == [.trbError])
        #expect(endpoint.context.state == .error)
        try guest.expectRecovery()
    }

    /// 4096 TRBs are the limit of a TD, and more than one call of `service` reads.
    @Test(arguments: [4095, 4096, 4097])
    func `a TD of many TRBs completes without a further doorbell`(count: Int) throws {
        let endpoint = try slot.configureOne(.bulkOut(1))
        let segment = guest.memory.allocate(5000 * 16, alignment: 64)
        var trbs = Array(repeating: GuestTRB.noOp(.chain), count: count - 1)
        trbs.append(.noOp(.interruptOnCompletion))
        write(trbs, at: segment)
        write([.link(to: segment)], at: endpoint.ring.start)
        endpoint.ringDoorbell()
        #expect(driver.takeAll().map(\.code) == [count > 4096 ? .trbError : .success])
    }

    @Test(arguments: [UInt64(0), 0x10, UInt64.max & ~0xf, 0x7fff_ffff_ffff_fff0])
    func `the controller survives a Link TRB to any address`(target: UInt64) throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        write([.link(to: GuestAddress(target))], at: endpoint.ring.start)
        endpoint.ringDoorbell()
        _ = driver.takeAll()
        try guest.expectRecovery()
    }

    @Test func `a ring in read-only memory works`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1))
        try endpoint.stop()
        _ = driver.takeAll(after: .milliseconds(1))
        let page = guest.memory.allocate(4096, alignment: 4096)
        let readOnly: UInt64 = 0x9_0000_0000
        try guest.machine.bus.map(
            guest.memory.descriptor(), offset: page.rawValue - guest.memory.base.rawValue,
            count: 4096, at: GuestAddress(readOnly), writable: false)
        write([.normal(buffer, 64, .interruptOnCompletion)], at: page)
        #expect(
            try endpoint.setDequeuePointer(GuestAddress(readOnly), cycle: true).code == .success)
        endpoint.ringDoorbell()
        #expect(try endpoint.event().code == .success)
    }

    @Test func `contexts in read-only memory are an error`() throws {
        let readOnly: UInt64 = 0x9_0000_0000
        try guest.machine.bus.map(
            guest.memory.descriptor(), offset: 0, count: 65536, at: GuestAddress(readOnly),
            writable: false)
        let other = try driver.enableSlot(port: slot.port)
        guest.memory.store(readOnly, at: driver.deviceContexts + other.number * 8)
        other.prepareAddress()
        driver.commandRing.push(
            .command(
                .addressDevice, slot: other.number, parameter: other.inputContext.rawValue))
        driver.ringDoorbell(slot: 0, target: 0)
        let events = driver.takeAll()
        #expect(guest.hasFailed || events.contains { $0.code != .success })
        try guest.expectRecovery()
    }

    @Test func `every TRB type on a bulk ring has a defined result`() throws {
        let endpoint = try slot.configureOne(.bulkIn(1, segments: [64]))
        for type in UInt8(0)...63 where type != GuestTRB.Kind.link.rawValue {
            let kind = GuestTRB.Kind(rawValue: type)
            let address = endpoint.submit(
                GuestTRB(
                    kind, parameter: buffer.rawValue, status: 64, flags: .interruptOnCompletion))
            let events = driver.takeAll(after: .milliseconds(1))
            switch kind {
            case .normal, .noOp:
                #expect(events.map(\.code) == [.success], "type \(type)")
            case .eventData:
                #expect(events.map(\.parameter) == [buffer.rawValue])
            default:
                #expect(events.map(\.code) == [.trbError], "type \(type): \(events)")
                #expect(events.map(\.pointer) == [address])
            }
            if endpoint.context.state == .halted { try endpoint.reset() }
            if endpoint.context.state == .running { try endpoint.stop() }
            #expect(try endpoint.setDequeuePointer().code == .success, "type \(type)")
            _ = driver.takeAll(after: .milliseconds(1))
        }
    }
}
