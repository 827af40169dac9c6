// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import TestKit
import Testing
import USB
import XHCI

/// Root hub ports: connection, reset, disable, power, change bits and their events
/// (xHCI 4.15, 4.19, 5.4.8).
struct PortTests {
    let guest: Guest
    let high = TestDevice(.high)
    let superSpeed = TestDevice(.superSpeed)
    var driver: GuestDriver { guest.driver }

    init() throws { guest = try Guest() }

    private func plug(_ device: TestDevice) throws -> Int {
        try guest.machine.attach(device)
        return try driver.waitForConnection()
    }

    // MARK: - Connection

    @Test func `empty ports have power and are in RxDetect`() {
        for number in 1...guest.registers.ports {
            let port = driver.port(number)
            #expect(port.linkState == .rxDetect)
            #expect(port.contains(.power))
            #expect(!port.contains(.connected) && !port.contains(.enabled))
            #expect(port.isDisjoint(with: .changes))
        }
    }

    @Test(arguments: [USBSpeed.low, .full, .high])
    func `a USB 2 port is in Polling until it is reset`(speed: USBSpeed) throws {
        let device = TestDevice(speed)
        let number = try plug(device)
        #expect((1...8).contains(number))
        let before = driver.port(number)
        #expect(before.linkState == .polling)
        #expect(!before.contains(.enabled))
        #expect(before.intersection(.changes) == .connectChange)
        driver.writePort(number, .reset)
        let after = try driver.waitForPort(number, "reset") { $0.contains(.resetChange) }
        #expect(after.contains(.enabled))
        #expect(!after.contains(.reset))
        #expect(after.linkState == .u0)
        #expect(after.speed == UInt32(speed.rawValue))
        #expect(device.resetCount == 1)
    }

    @Test func `a USB 3 device is enabled without a reset`() throws {
        let number = try plug(superSpeed)
        #expect((9...16).contains(number))
        let port = driver.port(number)
        #expect(port.contains([.connected, .enabled, .connectChange]))
        #expect(port.linkState == .u0)
        #expect(port.speed == 4)
    }

    @Test func `a connection has an event and sets PCD`() throws {
        let number = try plug(high)
        let event = try driver.wait("port change") { $0.isPortChange }
        #expect(event.port == number)
        #expect(event.code == .success)
        #expect(guest.status & GuestDriver.Status.portChange != 0)
    }

    @Test func `a device attached before the controller runs has an event`() throws {
        try driver.halt()
        try guest.machine.attach(high)
        try driver.run()
        let number = try driver.waitForConnection()
        #expect(driver.port(number).contains(.connected))
        #expect(driver.takeAll().contains { $0.isPortChange && $0.port == number })
    }

    @Test func `devices stay connected through HCRST`() throws {
        let number = try plug(high)
        driver.clearPort(number)
        try driver.start()
        guest.machine.pass(.milliseconds(200))
        let port = driver.port(number)
        #expect(port.contains([.connected, .connectChange]))
        #expect(!port.contains(.enabled))
    }

    @Test(arguments: [USBSpeed.high, .superSpeed])
    func `a disconnect disables the port`(speed: USBSpeed) throws {
        let device = TestDevice(speed)
        let slot = try guest.plug(device)
        driver.takeAll()
        guest.machine.detach(device)
        let port = try driver.waitForPort(slot.port, "disconnection") {
            $0.contains(.connectChange)
        }
        #expect(!port.contains(.connected) && !port.contains(.enabled))
        #expect(port.linkState == .rxDetect)
        #expect(driver.takeAll().contains { $0.isPortChange && $0.port == slot.port })
        #expect(device.detachCount == 1)
    }

    @Test func `a device that disconnects itself is unplugged`() throws {
        let slot = try guest.plug(high)
        high.disconnect()
        try driver.waitForPort(slot.port, "disconnection") { !$0.contains(.connected) }
    }

    @Test func `each port of a protocol takes one device`() throws {
        for _ in 0..<8 { try guest.machine.attach(TestDevice(.high)) }
        #expect(throws: AttachError.noFreePort(.full, count: 8)) {
            try guest.machine.attach(TestDevice(.full))
        }
        for _ in 0..<8 { try guest.machine.attach(TestDevice(.superSpeed)) }
        #expect(throws: AttachError.noFreePort(.superSpeed, count: 8)) {
            try guest.machine.attach(TestDevice(.superSpeed))
        }
        guest.machine.pass(.milliseconds(500))
        #expect(driver.connectedPorts == Array(1...16))
    }

    @Test func `a device is attached once and may be detached twice`() throws {
        try guest.machine.attach(high)
        #expect(throws: AttachError.alreadyAttached) { try guest.machine.attach(high) }
        guest.machine.detach(high)
        guest.machine.detach(high)
        guest.machine.detach(superSpeed)
        #expect(high.detachCount == 1)
        try guest.machine.attach(high)
        guest.machine.pass(.milliseconds(500))
        #expect(driver.connectedPorts.count == 1)
    }

    // MARK: - Change bits

    @Test func `change bits are cleared separately by writing one`() throws {
        let number = try plug(high)
        driver.writePort(number, .reset)
        try driver.waitForPort(number, "reset") { $0.contains(.resetChange) }
        driver.clearPort(number, .resetChange)
        #expect(driver.port(number).intersection(.changes) == .connectChange)
        driver.clearPort(number, .connectChange)
        #expect(driver.port(number).isDisjoint(with: .changes))
        #expect(driver.port(number).contains(.enabled))
    }

    @Test func `a further change has an event once the change bits are clear`() throws {
        let number = try plug(high)
        driver.clearPort(number)
        driver.takeAll()
        driver.writePort(number, .reset)
        let events = driver.takeAll()
        #expect(events.map(\.port) == [number])
        driver.clearPort(number)
        guest.machine.detach(high)
        #expect(driver.takeAll().map(\.port) == [number])
    }

    @Test func `a write of PP alone changes nothing`() throws {
        let slot = try guest.plug(high)
        let before = driver.port(slot.port)
        driver.writePort(slot.port, [])
        #expect(driver.port(slot.port) == before)
    }

    @Test func `wake enable bits read back`() throws {
        let wakes: GuestPortStatus = [.wakeOnConnect, .wakeOnDisconnect, .wakeOnOverCurrent]
        driver.writePort(1, wakes)
        #expect(driver.port(1).isSuperset(of: wakes))
        driver.machine.write32(
            GuestPortStatus.power.rawValue, at: guest.registers.port(1))
        #expect(driver.port(1).isDisjoint(with: wakes))
    }

    // MARK: - Reset, disable, power

    @Test func `a reset of an empty port does not enable it`() throws {
        driver.writePort(2, .reset)
        guest.machine.pass(.milliseconds(200))
        #expect(!driver.port(2).contains(.enabled))
        #expect(!driver.port(2).contains(.connected))
    }

    @Test func `a Hot Reset of a USB 3 port keeps it enabled`() throws {
        let slot = try guest.plug(superSpeed)
        let resets = superSpeed.resetCount
        driver.writePort(slot.port, .reset)
        let port = try driver.waitForPort(slot.port, "reset") { $0.contains(.resetChange) }
        #expect(port.contains(.enabled))
        #expect(!port.contains(.warmResetChange))
        #expect(port.linkState == .u0)
        #expect(superSpeed.resetCount == resets + 1)
    }

    @Test func `a Warm Reset sets WRC and PRC`() throws {
        let slot = try guest.plug(superSpeed)
        driver.writePort(slot.port, .warmReset)
        let port = try driver.waitForPort(slot.port, "warm reset") {
            $0.contains([.warmResetChange, .resetChange])
        }
        #expect(port.contains(.enabled))
        #expect(port.linkState == .u0)
        #expect(!port.contains(.warmReset), "WPR reads as zero")
    }

    @Test func `a Warm Reset of a USB 2 port is ignored`() throws {
        let slot = try guest.plug(high)
        driver.writePort(slot.port, .warmReset)
        guest.machine.pass(.milliseconds(200))
        #expect(!driver.port(slot.port).contains(.warmResetChange))
    }

    @Test func `a port reset ends transfers in flight`() throws {
        let slot = try guest.plug(high)
        let endpoint = try slot.configureOne(.bulkIn(1))
        endpoint.submit(endpoint.trbs(guest.memory.allocate(64), 64))
        guest.machine.pass(.milliseconds(1))
        #expect(high.pending.count == 1)
        driver.writePort(slot.port, .reset)
        guest.machine.pass(.milliseconds(200))
        #expect(high.pending.isEmpty)
        driver.clearPort(slot.port)
        try driver.succeed(.command(.resetDevice, slot: slot.number))
        try slot.address()
    }

    @Test(arguments: [USBSpeed.high, .superSpeed])
    func `writing one to PED disables the port`(speed: USBSpeed) throws {
        let slot = try guest.plug(TestDevice(speed))
        driver.takeAll()
        driver.writePort(slot.port, .enabled)
        let port = try driver.waitForPort(slot.port, "disabled") { !$0.contains(.enabled) }
        #expect(port.isDisjoint(with: .enableChange), "PEC is not set for a request of software")
        #expect(port.linkState != .u0)
        if speed.isSuperSpeed { #expect(port.linkState == .disabled) }
        // A USB 2 port is enabled by a reset, a USB 3 port by RxDetect.
        if speed.isSuperSpeed {
            driver.setLinkState(slot.port, .rxDetect)
        } else {
            driver.writePort(slot.port, .reset)
        }
        try driver.waitForPort(slot.port, "enabled") { $0.contains(.enabled) }
    }

    @Test func `a disabled USB 3 port reconnects through RxDetect`() throws {
        let slot = try guest.plug(superSpeed)
        driver.setLinkState(slot.port, .disabled)
        try driver.waitForPort(slot.port, "disabled") { $0.linkState == .disabled }
        driver.setLinkState(slot.port, .rxDetect)
        try driver.waitForPort(slot.port, "enabled") {
            $0.contains([.connected, .enabled]) && $0.linkState == .u0
        }
    }

    @Test(arguments: [USBSpeed.high, .superSpeed])
    func `a port without power shows no device`(speed: USBSpeed) throws {
        let slot = try guest.plug(TestDevice(speed))
        driver.machine.write32(0, at: guest.registers.port(slot.port))
        guest.machine.pass(.milliseconds(100))
        var port = driver.port(slot.port)
        #expect(!port.contains(.power) && !port.contains(.connected) && !port.contains(.enabled))
        driver.writePort(slot.port, .power)
        port = try driver.waitForPort(slot.port, "connection") { $0.contains(.connected) }
        #expect(port.contains(.power))
    }

    @Test func `a device attached to a port without power is shown when power returns`() throws {
        for number in 1...8 { driver.machine.write32(0, at: guest.registers.port(number)) }
        try guest.machine.attach(high)
        guest.machine.pass(.milliseconds(100))
        #expect(driver.connectedPorts.isEmpty)
        for number in 1...8 { driver.writePort(number, .power) }
        _ = try driver.waitForConnection()
    }

    @Test func `the controller survives any write to any port register`() throws {
        try guest.machine.attach(high)
        try guest.machine.attach(superSpeed)
        guest.machine.pass(.milliseconds(200))
        var random = SplitMix64(seed: 7)
        for number in [1, 2, 9, 10] {
            for state in UInt32(0)...15 {
                for bits in [0, 0x10, 0x8000_0000, 0xffff_fe1f, 0x0000_0002, .max] as [UInt32] {
                    guest.machine.write32(
                        bits | state << 5 | 0x1_0200, at: guest.registers.port(number))
                    guest.machine.pass(.milliseconds(1))
                }
            }
            for _ in 0..<200 {
                guest.machine.write32(
                    UInt32(truncatingIfNeeded: random.next()),
                    at: guest.registers.port(number) + random.number(0...3) * 4)
                guest.machine.pass(.milliseconds(1))
            }
        }
        #expect(!guest.machine.isSpinning)
        try guest.expectRecovery()
    }
}
