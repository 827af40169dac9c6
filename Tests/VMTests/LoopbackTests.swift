// SPDX-License-Identifier: Apache-2.0

import Glibc
import Testing
import VMKit

extension VMTests {
    /// Linux's own tests for USB controllers, against the test device.
    struct LoopbackTests {
        let lab: Lab

        init() throws { lab = try Lab() }

        /// Goal: each of the 30 cases at each speed, with data that is the same everywhere; and those
        /// that check it again with data in which a wrong byte is noticed.
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
                // Now: usbtest says much, and the log keeps only the last of it.
                try guest.expectNoComplaints()
            }
            try guest.run("echo 1 >/sys/module/usbtest/parameters/pattern")
            let looking = Array(1...8) + Array(11...13) + Array(17...20) + [24, 25, 26, 29]
            for device in devices where device.serial == "mod63" {
                for number in looking {
                    try guest.expectPass(.number(number), device, kernel)
                }
                // A case that does not run must not be taken for one that passes.
                #expect(try guest.run(.number(27), on: device) == .skipped)
                try guest.expectNoComplaints()
            }
            #expect(!server.log.contains("which is not in the pattern"), "\(server.log)")
            #expect(server.isRunning)
        }

        /// Goal: a device has the faults of its rules and no others, the guest sees their effects, and
        /// the device works again when the fault is over.
        @Test(arguments: Kernel.allCases)
        func `each fault has its effect in the guest, and passes`(kernel: Kernel) throws {
            let server = try lab.serve(Fault.all.map(\.device))
            let guest = try lab.boot(kernel, with: server)
            let devices = try guest.usbTestDevices(count: Fault.all.count)

            for fault in Fault.all {
                let device = try #require(devices.first { $0.serial == fault.rule })
                try guest.run("dmesg --clear")
                let outcome = try guest.run(fault.test, on: device)
                let log = guest.usbTestLog
                #expect(outcome == fault.outcome, "\(fault.rule)\n\(log)")
                #expect(log.contains(fault.words), "\(fault.rule)\n\(log)")
                #expect(server.log.contains("fault '\(fault.rule)' on transfer"), "\(server.log)")
                if fault.passes { try guest.expectPass(fault.test, device, kernel) }
                // The device is at fault, never the controller.
                #expect(try guest.complaints().filter { $0.contains("xhci_hcd") } == [])
            }
            #expect(server.isRunning)
        }

        /// Goal: descriptors that are wrong are seen to be so, a device that unplugs itself is gone,
        /// and those beside them work.
        @Test(arguments: Kernel.allCases)
        func `wrong descriptors and a device that disconnects do not disturb other devices`(
            kernel: Kernel
        ) throws {
            let faults = WrongDescriptor.all.map { "loopback:serial=\($0.rule),fault=\($0.rule)" }
            let server = try lab.serve(
                faults + [
                    "loopback:serial=back,fault=bulk-in disconnect after=4 reconnect=100",
                    "loopback:speed=super,serial=gone,fault=bulk-in disconnect after=4",
                ])
            let guest = try lab.boot(kernel, with: server)
            // Devices get the ports in their order.
            for (index, fault) in WrongDescriptor.all.enumerated() {
                try guest.wait(until: "dmesg | grep -q 'usb 1-\(index + 1): \(fault.words)'")
                #expect(server.log.contains("fault '\(fault.rule)' on transfer"), "\(server.log)")
            }
            var devices = try guest.usbTestDevices(count: 4)
            for device in devices where ["back", "gone"].contains(device.serial) {
                let outcome = try guest.run(.number(2), on: device)
                // Newer kernels leave it to the driver's time-out what a device left behind.
                let possible = [EPROTO, ESHUTDOWN, ENODEV, ETIMEDOUT].map {
                    USBTestCase.Outcome.failed($0)
                }
                #expect(possible.contains(outcome), "\(guest.usbTestLog)")
                try guest.wait(until: "[[ ! -e \(device.path) ]]")
            }
            devices = try guest.usbTestDevices(count: 3)
            #expect(devices.map(\.serial).filter { $0 == "back" || $0 == "gone" } == ["back"])
            for device in devices { try guest.expectPass(.number(2), device, kernel) }
            // No endpoint has packets of no bytes, and the controller says so.
            let refusal = "unexpected command completion code 0x11"
            #expect(
                try guest.complaints().filter { $0.contains("xhci_hcd") && !$0.contains(refusal) }
                    == [])
            #expect(server.isRunning)
        }
    }
}

/// A fault of a descriptor, and the beginning of the guest kernel's message about it.
private struct WrongDescriptor {
    let rule: String
    let words: String

    static let all = [
        WrongDescriptor(
            rule: "device-descriptor truncated", words: "device descriptor read/all, error -90"),
        // Nobody minds.
        WrongDescriptor(rule: "device-descriptor overlong", words: "New USB device found"),
        WrongDescriptor(
            rule: "device-descriptor contradictory", words: "device descriptor read/8, error -71"),
        WrongDescriptor(
            rule: "configuration-descriptor truncated",
            words: "config index 0 descriptor too short (expected 83, got 41)"),
        WrongDescriptor(
            rule: "configuration-descriptor overlong",
            words: "config index 0 descriptor too short (expected 1107, got 83)"),
        // SeaBIOS reads it twice, and reads on for ever behind what promises more interfaces.
        WrongDescriptor(
            rule: "configuration-descriptor contradictory after=2",
            words: "config 3 has 1 interface, different from the descriptor"),
    ]
}

/// A fault, the case of usbtest that meets it, and what comes of that.
private struct Fault {
    let rule: String
    let test: USBTestCase
    let outcome: USBTestCase.Outcome
    /// What the guest's kernel says of it.
    let words: String
    /// Whether it happens once only.
    let passes: Bool

    init(
        _ rule: String, _ number: Int, _ outcome: USBTestCase.Outcome, _ words: String = "",
        passes: Bool = true
    ) {
        self.rule = rule
        test = .number(number)
        self.outcome = outcome
        self.words = words
        self.passes = passes
    }

    /// As many as there are ports.
    static let all = [
        Fault("bulk-in stall after=4", 2, .failed(EPIPE), "iterations left 95, status -32"),
        Fault("bulk-in nak after=4", 2, .failed(ETIMEDOUT), "iterations left 95, status -110"),
        Fault("bulk-in slow ms=2", 2, .passed, passes: false),
        Fault("bulk-in short bytes=100 after=4", 2, .failed(EREMOTEIO), "iterations left 95"),
        Fault("bulk-in babble after=4", 2, .failed(EOVERFLOW), "iterations left 95"),
        // Linux tries a bulk transfer again, and a few times only.
        Fault("bulk-in error after=4", 2, .passed),
        Fault(
            "bulk-in error times=always", 2, .failed(EPROTO), "iterations left 99", passes: false),
        Fault("bulk-in corrupt byte=700 after=4", 2, .failed(EINVAL), "buf[700] = 255 (not 0)"),
        Fault("bulk-out corrupt byte=7 after=8", 1, .failed(EPIPE), "iterations left 95"),
        Fault("bulk-out nak queued=8", 27, .passed),
        Fault("interrupt-in stall after=4", 26, .failed(EPIPE), "iterations left 45"),
        Fault("control stall request=0x5b", 14, .failed(EPIPE), "ctrl_out write failed, code -32"),
        Fault("control short request=0x5c bytes=3", 14, .failed(EBADMSG), "rlen 3 (expected 1024)"),
        Fault(
            "iso-in error times=always", 16, .failed(EIO), "errors out of", passes: false),
        Fault("iso-in short bytes=8 after=4", 16, .passed, "during the test, 1 errors out of"),
        Fault("iso-out corrupt", 15, .passed),
    ]

    /// Half of them at each kind of port.
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
