// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// A Max Packet Size of 0 (USB 2.0 5.6.3, xHCI 6.2.3). Only isochronous endpoints may have it:
/// those of alternate setting 0 do, and drivers add them like all others.
struct PacketSizeTests {
    let guest: Guest
    let device = TestDevice { $0.endpoint == .control ? nil : .end(.completed, transferred: 0) }
    let slot: GuestSlot

    init() throws {
        guest = try Guest()
        slot = try guest.plug(device)
    }

    @Test(arguments: [Direction.in, .out], [0, 15])
    func `an isochronous endpoint without bandwidth can be configured and moves no data`(
        direction: Direction, burst: Int
    ) throws {
        let endpoint = try slot.configureOne(
            .isochronous(1, direction, maxPacketSize: 0, maxBurst: burst))
        let buffer = guest.memory.allocate(64)
        endpoint.submit([
            .isochronous(buffer, 0, .interruptOnCompletion),
            .isochronous(buffer, 8, .interruptOnCompletion),
        ])
        let events = guest.driver.takeAll(after: .milliseconds(10)).filter(\.isTransfer)
        #expect(events.prefix(2).map(\.code) == [.success, .bandwidthOverrun])
        #expect(device.records.suffix(2).map(\.count) == [0, 0])
        #expect(!guest.machine.isSpinning)
    }

    @Test func `bulk and interrupt endpoints need a packet size`() throws {
        var bulk = GuestEndpointConfiguration.bulkIn(1)
        var interrupt = GuestEndpointConfiguration.interruptIn(1)
        bulk.maxPacketSize = 0
        interrupt.maxPacketSize = 0
        for configuration in [bulk, interrupt] {
            _ = slot.prepareConfiguration([configuration])
            #expect(badInput.contains(try slot.configureCommand().code))
        }
    }
}
