// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Endpoints are serviced round-robin, however much work some have.
struct FairnessTests {
    @Test func `a device that always has data does not delay others`() throws {
        let guest = try Guest()
        var served: [UInt8] = []
        let busy = TestDevice { $0.endpoint.number == 0 ? nil : .give([]) }
        let other = TestDevice { $0.endpoint.number == 0 ? nil : .give([]) }
        let greedy = try guest.plug(busy).configure(
            (1...6).map { .bulkIn($0, segments: [512]) })
        let modest = try guest.plug(other, .bulkIn(1))
        busy.onTransfer = { transfer in
            served.append(transfer.endpoint.number)
            return .give([])
        }
        other.onTransfer = { _ in
            served.append(100)
            return .give([])
        }
        let buffer = guest.memory.allocate(512)
        for endpoint in greedy { endpoint.submit((0..<400).map { _ in .normal(buffer, 512) }) }
        modest.submit(.normal(buffer, 512, .interruptOnCompletion))
        _ = try modest.event()
        let index = try #require(served.firstIndex(of: 100))
        #expect(index < 400)
        #expect(Set(served[..<index]).count == 6, "each of the others was serviced")
    }

    @Test func `TRBs of incomplete TDs count as work`() throws {
        let guest = try Guest(.remote)
        let device = TestDevice { $0.endpoint.number == 0 ? nil : .give([]) }
        let endpoints = try guest.plug(device).configure(
            (1...10).map { .bulkIn($0, segments: [512]) })
        let buffer = guest.memory.allocate(512)
        for endpoint in endpoints {
            endpoint.submit((0..<500).map { _ in .normal(buffer, 1, .chain) })
        }
        let before = guest.machine.remote.accessCount
        guest.machine.turn()
        #expect(guest.machine.remote.accessCount - before < 5000)
        for endpoint in endpoints { endpoint.submit(.normal(buffer, 1, .interruptOnCompletion)) }
        #expect(guest.driver.takeAll().filter(\.isTransfer).count == 10)
    }
}
