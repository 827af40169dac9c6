// SPDX-License-Identifier: Apache-2.0

import Glibc
import Testing
import VMKit

extension VMTests {
    /// Tests of the loopback device with `usbtest`, Linux's test module for USB controllers.
    struct LoopbackTests {
        let lab: Lab

        init() throws { lab = try Lab() }

        /// Goal: all 30 cases pass at each speed with zeroes, and those that compare data also with
        /// a pattern in which a byte at a wrong offset is noticed.
        @Test(arguments: Kernel.allCases)
        func `usbtest passes each of its cases at each speed`(kernel: Kernel) throws {
            let server = try lab.serve(
                "loopback:speed=full,serial=zero", "loopback:speed=full,pattern=mod63,serial=mod63",
                "loopback:speed=high,serial=zero", "loopback:speed=high,pattern=mod63,serial=mod63",
                "loopback:speed=super,serial=zero",
                "loopback:speed=super,pattern=mod63,serial=mod63")
            let guest = try lab.boot(kernel, with: server)
            let devices = try guest.usbTestDevices(count: 6)
            #expect(devices.map(\.speed).sorted() == ["12", "12", "480", "480", "5000", "5000"])
            #expect(Set(devices.map(\.serial)) == ["zero", "mod63"])

            for device in devices where device.serial == "zero" {
                for test in USBTestCase.all { try guest.expectPass(test, device, kernel) }
                // Read after each device, since the kernel log keeps only the last lines of
                // usbtest.
                try guest.expectNoComplaints()
            }
            try guest.run("echo 1 >/sys/module/usbtest/parameters/pattern")
            let comparing = Array(1...8) + Array(11...13) + Array(17...20) + [24, 25, 26, 29]
            for device in devices where device.serial == "mod63" {
                for number in comparing {
                    try guest.expectPass(.number(number), device, kernel)
                }
                // A case that usbtest skips is reported as skipped, not as passed.
                #expect(try guest.run(.number(27), on: device) == .skipped)
                try guest.expectNoComplaints()
            }
            #expect(!server.log.contains("which is not in the pattern"), "\(server.log)")
            #expect(server.isRunning)
        }

        /// Goal: each fault rule has its effect in the guest and no other, and a fault that happens
        /// once leaves a device that works.
        @Test(arguments: Kernel.allCases)
        func `each fault has its effect in the guest, and then the device works`(kernel: Kernel)
            throws
        {
            let server = try lab.serve(Fault.all.map(\.device))
            let guest = try lab.boot(kernel, with: server)
            let devices = try guest.usbTestDevices(count: Fault.all.count)

            for fault in Fault.all {
                let device = try #require(devices.first { $0.serial == fault.rule })
                try guest.run("dmesg --clear")
                let outcome = try guest.run(fault.test, on: device)
                let log = guest.usbTestLog
                #expect(outcome == fault.outcome, "\(fault.rule)\n\(log)")
                #expect(log.contains(fault.message), "\(fault.rule)\n\(log)")
                #expect(server.log.contains("fault '\(fault.rule)' on transfer"), "\(server.log)")
                if fault.isTransient { try guest.expectPass(fault.test, device, kernel) }
                // The kernel reports errors of the device, none of the controller.
                #expect(try guest.complaints().filter { $0.contains("xhci_hcd") } == [])
            }
            #expect(server.isRunning)
        }

        /// Goal: the guest's kernel reports each wrong descriptor, removes a device that
        /// disconnects itself, and the other devices work.
        @Test(arguments: Kernel.allCases)
        func `wrong descriptors and a disconnecting device do not affect other devices`(
            kernel: Kernel
        ) throws {
            let faults = WrongDescriptor.all.map { "loopback:serial=\($0.rule),fault=\($0.rule)" }
            let server = try lab.serve(
                faults + [
                    "loopback:serial=back,fault=bulk-in disconnect after=4 reconnect=100",
                    "loopback:speed=super,serial=gone,fault=bulk-in disconnect after=4",
                ])
            let guest = try lab.boot(kernel, with: server)
            // Devices get ports in the order of the command line.
            for (index, fault) in WrongDescriptor.all.enumerated() {
                try guest.wait(until: "dmesg | grep -q 'usb 1-\(index + 1): \(fault.message)'")
                #expect(server.log.contains("fault '\(fault.rule)' on transfer"), "\(server.log)")
            }
            var devices = try guest.usbTestDevices(count: 4)
            for device in devices where ["back", "gone"].contains(device.serial) {
                let outcome = try guest.run(.number(2), on: device)
                // Newer kernels let the transfers of a removed device end by the driver's timeout.
                let possible = [EPROTO, ESHUTDOWN, ENODEV, ETIMEDOUT].map {
                    USBTestCase.Outcome.failed($0)
                }
                #expect(possible.contains(outcome), "\(guest.usbTestLog)")
                try guest.wait(until: "[[ ! -e \(device.path) ]]")
            }
            devices = try guest.usbTestDevices(count: 3)
            #expect(devices.map(\.serial).filter { $0 == "back" || $0 == "gone" } == ["back"])
            for device in devices { try guest.expectPass(.number(2), device, kernel) }
            // The controller rejects an endpoint with a maximum packet size of 0 (Parameter Error).
            let refusal = "unexpected command completion code 0x11"
            #expect(
                try guest.complaints().filter { $0.contains("xhci_hcd") && !$0.contains(refusal) }
                    == [])
            #expect(server.isRunning)
        }
    }
}

/// A fault of a descriptor, and the kernel log line of the guest that shows it.
private struct WrongDescriptor {
    let rule: String
    let message: String

    static let all = [
        WrongDescriptor(
            rule: "device-descriptor truncated", message: "device descriptor read/all, error -90"),
        // Linux accepts it.
        WrongDescriptor(rule: "device-descriptor overlong", message: "New USB device found"),
        WrongDescriptor(
            rule: "device-descriptor contradictory", message: "device descriptor read/8, error -71"),
        WrongDescriptor(
            rule: "configuration-descriptor truncated",
            message: "config index 0 descriptor too short (expected 83, got 41)"),
        WrongDescriptor(
            rule: "configuration-descriptor overlong",
            message: "config index 0 descriptor too short (expected 1107, got 83)"),
        // SeaBIOS reads it twice, and does not stop reading when interfaces are missing.
        WrongDescriptor(
            rule: "configuration-descriptor contradictory after=2",
            message: "config 3 has 1 interface, different from the descriptor"),
    ]
}

/// A fault rule, the `usbtest` case that triggers it, and the outcome of that case.
private struct Fault {
    let rule: String
    let test: USBTestCase
    let outcome: USBTestCase.Outcome
    /// A part of the guest's kernel log that shows the effect.
    let message: String
    /// Whether the device works again after the case.
    let isTransient: Bool

    init(
        _ rule: String, _ number: Int, _ outcome: USBTestCase.Outcome, _ message: String = "",
        isTransient: Bool = true
    ) {
        self.rule = rule
        test = .number(number)
        self.outcome = outcome
        self.message = message
        self.isTransient = isTransient
    }

    /// A fault for each of the 16 ports.
    static let all = [
        Fault("bulk-in stall after=4", 2, .failed(EPIPE), "iterations left 95, status -32"),
        Fault("bulk-in nak after=4", 2, .failed(ETIMEDOUT), "iterations left 95, status -110"),
        Fault("bulk-in slow ms=2", 2, .passed, isTransient: false),
        Fault("bulk-in short bytes=100 after=4", 2, .failed(EREMOTEIO), "iterations left 95"),
        Fault("bulk-in babble after=4", 2, .failed(EOVERFLOW), "iterations left 95"),
        // Linux retries a bulk transfer a few times after a transaction error.
        Fault("bulk-in error after=4", 2, .passed),
        Fault(
            "bulk-in error times=always", 2, .failed(EPROTO), "iterations left 99",
            isTransient: false),
        Fault("bulk-in corrupt byte=700 after=4", 2, .failed(EINVAL), "buf[700] = 255 (not 0)"),
        Fault("bulk-out corrupt byte=7 after=8", 1, .failed(EPIPE), "iterations left 95"),
        Fault("bulk-out nak queued=8", 27, .passed),
        Fault("interrupt-in stall after=4", 26, .failed(EPIPE), "iterations left 45"),
        Fault("control stall request=0x5b", 14, .failed(EPIPE), "ctrl_out write failed, code -32"),
        Fault("control short request=0x5c bytes=3", 14, .failed(EBADMSG), "rlen 3 (expected 1024)"),
        Fault(
            "iso-in error times=always", 16, .failed(EIO), "errors out of", isTransient: false),
        Fault("iso-in short bytes=8 after=4", 16, .passed, "during the test, 1 errors out of"),
        Fault("iso-out corrupt", 15, .passed),
    ]

    /// The device with this fault. Faults alternate between USB 2 and USB 3 ports.
    var device: String {
        let index = Self.all.firstIndex { $0.rule == rule } ?? 0
        return "loopback:speed=\(index % 2 == 0 ? "high" : "super"),serial=\(rule),fault=\(rule)"
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
            \(usbTestLog)
            """,
            sourceLocation: sourceLocation)
    }
}
