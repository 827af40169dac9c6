// SPDX-License-Identifier: Apache-2.0

import Testing
import VMKit

extension VMTests {
    /// Linux's own tests for USB controllers, against the test device.
    struct LoopbackTests {
        let lab: Lab

        init() throws { lab = try Lab() }

        /// Goal: each of the 30 cases at each speed, with data that is the same everywhere; and those
        /// that look at it again with data in which a byte out of place is seen.
        @Test(arguments: Kernel.allCases)
        func `usbtest passes each of its cases at each speed`(kernel: Kernel) throws {
            let server = try lab.serve(
                "loopback:speed=full,serial=zero", "loopback:speed=full,pattern=mod63,serial=mod63",
                "loopback:speed=high,serial=zero", "loopback:speed=high,pattern=mod63,serial=mod63",
                "loopback:speed=super,serial=zero", "loopback:speed=super,pattern=mod63,serial=mod63")
            let guest = try lab.boot(kernel, with: server)
            let devices = try guest.usbTestDevices(count: 6)

            for device in devices where device.serial == "zero" {
                for test in USBTestCase.all { try guest.expectPass(test, device, kernel) }
            }
            try guest.run("echo 1 >/sys/module/usbtest/parameters/pattern")
            let looking = Array(1...8) + Array(11...13) + Array(17...20) + [24, 25, 26, 29]
            for device in devices where device.serial == "mod63" {
                for number in looking {
                    try guest.expectPass(.number(number), device, kernel)
                }
            }
            #expect(devices.map(\.speed).sorted() == ["12", "12", "480", "480", "5000", "5000"])
            #expect(Set(devices.map(\.serial)) == ["zero", "mod63"])
            try guest.expectNoComplaints()
            #expect(server.isRunning)
        }
    }
}

extension Guest {
    fileprivate func expectPass(
        _ test: USBTestCase, _ device: USBTestDevice, _ kernel: Kernel,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let outcome = try run(test, on: device)
        #expect(
            outcome == .passed,
            """
            \(test), \(device.serial), \(device.speed) Mb/s, \(kernel.testDescription)
            \(logTail)
            """,
            sourceLocation: sourceLocation)
    }
}
