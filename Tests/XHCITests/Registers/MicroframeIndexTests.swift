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

    @Test func `MFINDEX counts 125 µs`() {
        let before = index
        guest.machine.pass(.milliseconds(1))
        #expect((index &- before) & 0x3fff == 8)
        guest.machine.pass(.microseconds(250))
        #expect((index &- before) & 0x3fff == 10)
    }

    @Test func `MFINDEX wraps after 14 bits`() {
        let before = index
        guest.machine.pass(.microseconds(125 * 0x4000))
        #expect(index == before)
        #expect(index <= 0x3fff)
    }

    @Test func `with EWE set, each wrap has an event`() {
        let machine = guest.machine
        machine.write32(
            machine.read32(guest.registers.command) | GuestDriver.Command.wrapEventEnable,
            at: guest.registers.command)
        let events = guest.driver.takeAll(after: .microseconds(125 * 0x4000 * 3))
        #expect(events.filter { $0.kind == .microframeWrap && $0.code == .success }.count == 3)
    }

    @Test func `with EWE clear, wraps have no event`() {
        let events = guest.driver.takeAll(after: .microseconds(125 * 0x4000 * 3))
        #expect(events.isEmpty)
    }

    @Test func `MFINDEX is read-only`() {
        let before = index
        guest.machine.write32(0x1234, at: guest.registers.microframeIndex)
        #expect(index == before)
    }
}
