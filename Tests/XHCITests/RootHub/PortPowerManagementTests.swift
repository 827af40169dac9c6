// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Suspend, resume and remote wake-up of ports (xHCI 4.15, 4.23.5).
struct PortPowerManagementTests {
    let guest: Guest
    let high = TestDevice(.high)
    let superSpeed = TestDevice(.superSpeed)
    var driver: GuestDriver { guest.driver }

    init() throws { guest = try Guest() }

    private func suspended(_ device: TestDevice) throws -> GuestSlot {
        let slot = try guest.plug(device)
        driver.setLinkState(slot.port, .u3)
        try driver.waitForPort(slot.port, "suspend") { $0.linkState == .u3 }
        driver.takeAll()
        return slot
    }

    @Test(arguments: [USBSpeed.high, .superSpeed])
    func `suspending a port has no event and suspends the device`(speed: USBSpeed) throws {
        let device = TestDevice(speed)
        let slot = try guest.plug(device)
        driver.takeAll()
        driver.setLinkState(slot.port, .u3)
        let port = try driver.waitForPort(slot.port, "suspend") { $0.linkState == .u3 }
        #expect(port.contains([.connected, .enabled]))
        #expect(driver.takeAll().isEmpty)
        #expect(driver.port(slot.port).isDisjoint(with: .changes))
        #expect(device.suspensions == [true])
    }

    @Test func `PLS without LWS is not written`() throws {
        let slot = try guest.plug(high)
        let value = driver.port(slot.port).preserved.rawValue | 3 << 5
        guest.machine.write32(value, at: guest.registers.port(slot.port))
        guest.machine.pass(.milliseconds(50))
        #expect(driver.port(slot.port).linkState == .u0)
    }

    @Test func `a USB 2 port resumes as Linux does it`() throws {
        let slot = try suspended(high)
        driver.setLinkState(slot.port, .resume)
        guest.machine.pass(.milliseconds(20))
        #expect(driver.port(slot.port).linkState == .resume)
        driver.setLinkState(slot.port, .u0)
        let port = try driver.waitForPort(slot.port, "resumed") { $0.linkState == .u0 }
        #expect(port.contains(.enabled))
        #expect(port.contains(.linkChange), "PLC after a resume by software")
        #expect(high.suspensions == [true, false])
        driver.clearPort(slot.port)
        #expect(try slot.control(descriptor).count == 18)
    }

    private var descriptor: SetupPacket {
        SetupPacket(requestType: 0x80, request: 6, value: 0x100, index: 0, length: 18)
    }

    @Test func `a USB 3 port resumes by writing U0`() throws {
        let slot = try suspended(superSpeed)
        driver.setLinkState(slot.port, .u0)
        let port = try driver.waitForPort(slot.port, "resumed") {
            $0.linkState == .u0 && $0.contains(.linkChange)
        }
        #expect(port.contains(.enabled))
        #expect(driver.takeAll().map(\.port) == [slot.port])
        #expect(superSpeed.suspensions == [true, false])
        #expect(try slot.control(descriptor).count == 18)
    }

    @Test func `remote wake-up of a USB 2 port stays in Resume until the driver writes U0`() throws
    {
        let slot = try suspended(high)
        high.wake()
        let port = try driver.waitForPort(slot.port, "resume") { $0.linkState == .resume }
        #expect(port.contains(.linkChange))
        #expect(driver.takeAll().map(\.port) == [slot.port])
        guest.machine.pass(.milliseconds(20))
        driver.setLinkState(slot.port, .u0)
        try driver.waitForPort(slot.port, "resumed") { $0.linkState == .u0 }
        #expect(high.suspensions == [true, false])
    }

    @Test func `remote wake-up of a USB 3 port ends in U0`() throws {
        let slot = try suspended(superSpeed)
        superSpeed.wake()
        let port = try driver.waitForPort(slot.port, "resumed") {
            $0.contains(.linkChange) && ($0.linkState == .u0 || $0.linkState == .resume)
        }
        #expect(port.contains(.connected))
        #expect(driver.takeAll().contains { $0.isPortChange && $0.port == slot.port })
    }

    @Test func `a port that is not suspended ignores wake-up`() throws {
        let slot = try guest.plug(high)
        driver.takeAll()
        high.wake()
        #expect(driver.takeAll().isEmpty)
        #expect(driver.port(slot.port).linkState == .u0)
    }

    @Test func `transfers queued before a suspend complete after the resume`() throws {
        let slot = try guest.plug(high)
        let endpoint = try slot.configureOne(.interruptIn(1))
        let address = endpoint.submit(
            .normal(guest.memory.allocate(8), 8, .interruptOnCompletion))
        guest.machine.pass(.milliseconds(1))
        driver.setLinkState(slot.port, .u3)
        try driver.waitForPort(slot.port, "suspend") { $0.linkState == .u3 }
        guest.machine.pass(.milliseconds(100))
        driver.setLinkState(slot.port, .resume)
        guest.machine.pass(.milliseconds(20))
        driver.setLinkState(slot.port, .u0)
        try driver.waitForPort(slot.port, "resumed") { $0.linkState == .u0 }
        guest.machine.pass(.milliseconds(1))
        #expect(high.answerNext(.give([1, 2, 3, 4, 5, 6, 7, 8])))
        #expect(try endpoint.event().pointer == address)
    }

    @Test func `a suspended device can be unplugged`() throws {
        let slot = try suspended(high)
        guest.machine.detach(high)
        let port = try driver.waitForPort(slot.port, "disconnection") {
            $0.contains(.connectChange)
        }
        #expect(!port.contains(.connected))
        #expect(port.linkState == .rxDetect)
    }

    @Test func `a suspended port can be reset`() throws {
        let slot = try suspended(high)
        try driver.resetPort(slot.port)
        #expect(driver.port(slot.port).linkState == .u0)
    }

    @Test(arguments: [0, 1, 2] as [UInt8])
    func `requests for U1, U2 or L1 leave the link usable`(state: UInt8) throws {
        let slot = try guest.plug(superSpeed)
        driver.setLinkState(slot.port, GuestPortStatus.LinkState(rawValue: state))
        guest.machine.pass(.milliseconds(50))
        #expect(driver.port(slot.port).contains([.connected, .enabled]))
        #expect(try slot.control(descriptor).count == 18)
    }

    @Test func `an empty port cannot be suspended`() throws {
        for number in [1, 9] {
            driver.setLinkState(number, .u3)
            guest.machine.pass(.milliseconds(50))
            #expect(driver.port(number).linkState != .u3)
        }
    }
}
