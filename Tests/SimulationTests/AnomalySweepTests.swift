// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// A scenario in which the first access to guest memory fails, then the second, up to the last one.
/// Each run must end, and after a reset the controller must work.
struct AnomalySweepTests {
    private final class Scenario {
        let machine: SimulatedMachine
        let driver: GuestDriver

        init() throws {
            machine = try SimulatedMachine(.remote, memory: GuestRAM(size: 1 << 20))
            driver = GuestDriver(machine)
        }

        func run() throws {
            let device = TestDevice { transfer in
                switch (transfer.endpoint == .control, transfer.direction) {
                case (true, _): nil
                case (false, .in): .give([1, 2, 3])
                case (false, .out): .accept
                }
            }
            defer { machine.detach(device) }
            try driver.start()
            try machine.attach(device)
            let slot = try driver.addressNewDevice()
            let endpoints = try slot.configure(.bulkIn(1, segments: [3]), .bulkOut(1))
            for _ in 0..<4 {
                #expect(try endpoints[0].receive(16) == [1, 2, 3])
                #expect(try endpoints[1].send([4, 5, 6]) == 3)
                #expect(device.records.last?.bytes == [4, 5, 6])
            }
            try endpoints[0].stop()
            try endpoints[0].setDequeuePointer()
            _ = try slot.control(
                SetupPacket(requestType: 0x80, request: 6, value: 0x100, index: 0, length: 18))
            try driver.succeed(.command(.resetDevice, slot: slot.number))
            try slot.disable()
        }
    }

    @Test(arguments: [false, true])
    func `the controller works after any failing access`(failsForEver: Bool) throws {
        var access = 1
        var isUndisturbed = false
        while !isUndisturbed, access < 5000 {
            let scenario = try Scenario()
            let remote = scenario.machine.remote
            remote.failingAccess = access
            remote.failsForEver = failsForEver
            do {
                try scenario.run()
            } catch is GuestError {
                // An error code or a timeout is how a driver notices a bus error.
            }
            isUndisturbed = remote.accessCount < access
            remote.failingAccess = nil
            #expect(!scenario.machine.isSpinning, "access \(access)")
            if !isUndisturbed {
                #expect(throws: Never.self, "access \(access)") { try scenario.run() }
                #expect(scenario.machine.memory.damagedCanaries().isEmpty)
            }
            access += failsForEver ? 3 : 1
        }
        #expect(isUndisturbed)
    }
}
