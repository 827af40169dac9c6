// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// MFINDEX and its wrap event (xHCI 5.5.1, 4.14.2).
struct MicroframeIndexTests {
    let guest: Guest

    init() throws { guest = try Guest() }

    private var index: UInt32 { guest.machine.read32(guest.registers.microframeIndex) }

    @Test func `the index counts eighths of a millisecond`() {
        let before = index
        guest.machine.pass(.milliseconds(1))
        #expect((index &- before) & 0x3fff == 8)
        guest.machine.pass(.microseconds(250))
        #expect((index &- before) & 0x3fff == 10)
    }

    @Test func `the index wraps after fourteen bits`() {
        let before = index
        guest.machine.pass(.microseconds(125 * 0x4000))
        #expect(index == before)
        #expect(index <= 0x3fff)
    }

    @Test func `each wrap is told of if the driver asks`() {
        let machine = guest.machine
        machine.write32(
            machine.read32(guest.registers.command) | GuestDriver.Command.wrapEventEnable,
            at: guest.registers.command)
        let events = guest.driver.takeAll(after: .microseconds(125 * 0x4000 * 3))
        #expect(events.filter { $0.kind == .microframeWrap && $0.code == .success }.count == 3)
    }

    @Test func `wraps are silent otherwise`() {
        let events = guest.driver.takeAll(after: .microseconds(125 * 0x4000 * 3))
        #expect(events.isEmpty)
    }

    @Test func `writes to the index are ignored`() {
        let before = index
        guest.machine.write32(0x1234, at: guest.registers.microframeIndex)
        #expect(index == before)
    }
}
