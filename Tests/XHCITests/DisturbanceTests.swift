// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Repeats a scenario with a disturbance (an unplug, a reset, a halt, an unmapping) at its first
/// moment, then at its second, and so on, until the scenario ends undisturbed.
struct DisturbanceTests {
    private enum Disturbance: CaseIterable {
        case detach, disconnect, deviceReset, controllerReset, portReset, halt, unmap, fail
    }

    private final class Scenario {
        let machine: SimulatedMachine
        let driver: GuestDriver
        let device = TestDevice { transfer in
            switch (transfer.endpoint == .control, transfer.direction) {
            case (true, _): nil
            case (false, .in): .give([1, 2, 3])
            case (false, .out): .accept
            }
        }

        init(_ kind: SimulatedMachine.MemoryKind) throws {
            machine = try SimulatedMachine(kind, memory: GuestRAM(size: 1 << 20))
            driver = GuestDriver(machine)
        }

        /// Enumerates the device, moves data, stops an endpoint and disables the slot.
        func run() throws {
            try driver.start()
            try machine.attach(device)
            let slot = try driver.addressNewDevice()
            let endpoints = try slot.configure(.bulkIn(1), .bulkOut(1))
            _ = try endpoints[0].receive(64)
            _ = try endpoints[1].send([1, 2, 3])
            device.onTransfer = { _ in .hold }
            endpoints[0].submit(endpoints[0].trbs(machine.memory.allocate(64), 64))
            machine.pass(.milliseconds(1))
            try endpoints[0].stop()
            try slot.disable()
        }

        /// Expects that a driver can start again and use a new device.
        func recover() throws {
            machine.onTurn = nil
            machine.remote.onAccess = nil
            machine.detach(device)
            try driver.start()
            let fresh = TestDevice { $0.endpoint == .control ? nil : .give([9]) }
            try machine.attach(fresh)
            _ = driver.takeAll(after: .milliseconds(100))
            let port = (1...driver.registers.ports).first {
                driver.port($0).contains(.connected)
            }
            let endpoint = try driver.address(port: #require(port)).configureOne(.bulkIn(2))
            #expect(try endpoint.receive(16) == [9])
            #expect(!machine.isSpinning)
            #expect(machine.memory.damagedCanaries().isEmpty)
        }

        func disturb(_ disturbance: Disturbance) throws {
            let registers = driver.registers
            switch disturbance {
            case .detach: machine.detach(device)
            case .disconnect: device.disconnect()
            case .deviceReset: machine.controller.reset()
            case .controllerReset:
                machine.write32(GuestDriver.Command.reset, at: registers.command)
            case .portReset:
                for number in driver.connectedPorts { driver.writePort(number, .reset) }
            case .halt: machine.write32(0, at: registers.command)
            case .unmap:
                let start = machine.memory.base
                let count = UInt64(machine.memory.size)
                machine.controller.endAccess(to: try machine.bus.unmap(start, count: count))
                try machine.bus.mapRemote(count: count, at: start, writable: true)
                machine.bus.remote = machine.remote
            case .fail:
                while device.answerNext(.end(.failed, transferred: 1)) {}
                device.onTransfer = { _ in .end(.failed, transferred: 0) }
            }
        }
    }

    @Test(arguments: Disturbance.allCases, SimulatedMachine.MemoryKind.allCases)
    private func `a disturbance at any turn is survived`(
        disturbance: Disturbance, kind: SimulatedMachine.MemoryKind
    ) throws {
        var moment = 1
        var isUndisturbed = false
        while !isUndisturbed, moment < 500 {
            let scenario = try Scenario(kind)
            isUndisturbed = true
            scenario.machine.onTurn = { turn in
                guard turn == moment else { return }
                isUndisturbed = false
                #expect(throws: Never.self) { try scenario.disturb(disturbance) }
            }
            // The scenario may fail, but it must end.
            try? scenario.run()
            try scenario.recover()
            moment += 1
        }
        #expect(isUndisturbed)
    }

    /// The client's other messages are served while the controller waits for guest memory.
    @Test(arguments: [
        Disturbance.deviceReset, .controllerReset, .portReset, .halt, .unmap,
    ])
    private func `a disturbance in the middle of any memory access is survived`(
        disturbance: Disturbance
    ) throws {
        var moment = 1
        var isUndisturbed = false
        while !isUndisturbed, moment < 2000 {
            let scenario = try Scenario(.remote)
            isUndisturbed = true
            var accesses = 0
            scenario.machine.remote.onAccess = { _ in
                accesses += 1
                guard accesses == moment else { return }
                isUndisturbed = false
                #expect(throws: Never.self) { try scenario.disturb(disturbance) }
            }
            try? scenario.run()
            try scenario.recover()
            moment += 1
        }
        #expect(isUndisturbed)
    }

    @Test func `registers can be read and written in the middle of any memory access`() throws {
        let scenario = try Scenario(.remote)
        let machine = scenario.machine
        let registers = scenario.driver.registers
        machine.remote.onAccess = { _ in
            // Each write is work for the controller, so the number of writes is limited.
            guard machine.remote.accessCount < 600 else { return }
            _ = machine.readRegister(at: 0, count: Controller.registerSpaceSize)
            machine.write32(0, at: registers.status)
            machine.write32(0, at: registers.notificationControl)
        }
        try scenario.run()
        try scenario.recover()
    }
}
