// SPDX-License-Identifier: Apache-2.0

import Foundation
import Testing
import VMKit

extension NestedVMTests {
    /// Tests of the host backend without a controller: `HostUSBTests.RealDeviceTests`, run on a
    /// guest that has USB devices.
    @Suite(
        .enabled(
            if: ProcessInfo.processInfo.environment["USBVFIOD_BINARY"] == nil,
            "the guest runs the tests' own build, not USBVFIOD_BINARY"))
    struct HostBackendTests {
        let lab: Lab

        init() throws { lab = try Lab() }

        /// Goal: the error about a missing permission names the udev rule that grants it; the
        /// kernel's driver is bound again after the program has exited; all tests pass that need a
        /// stick, a keyboard and gadget zero, two of which are unplugged at the end.
        @Test func `transfers, halts, resets, limits and removal of real devices`() throws {
            let host = try lab.bootHost(
                .newest,
                devices: [
                    .controller, .stick(lab.image(mebibytes: 16)), .keyboard,
                    .uasDisk("STREAMS", at: "usb"),
                    .qemu("-device", "qemu-xhci,id=plain,streams=off"),
                    .uasDisk("PLAIN", at: "plain"),
                ])
            let stick = try host.address(vendor: "46f4", product: "0001")
            let refusal = try host.execute(
                """
                LD_LIBRARY_PATH=/mnt/runtime setpriv --reuid=65534 --regid=65534 --clear-groups \
                    /mnt/program/usbvfiod --socket-path /tmp/socket --device \(stick.path) 2>&1
                """, timeout: .seconds(60))
            #expect(refusal.status != 0)
            #expect(refusal.output.contains("permission denied"))
            #expect(refusal.output.contains(#"ATTR{idVendor}=="46f4", ATTR{idProduct}=="0001""#))

            // The program detaches the stick's kernel driver, and attaches it when it exits.
            try host.serve(stick.specification)
            try host.wait(until: "[[ ! -e /sys/block/sda ]]")
            try host.run("kill $(<\(GuestHost.serverFolder)/pid)")
            try host.wait(until: "[[ -e /sys/block/sda ]]")

            let diskTest = try host.run(
                """
                LD_LIBRARY_PATH=/mnt/runtime /mnt/program/\(try testProgram()) \
                    --testing-library swift-testing --filter RandomAccessFileTests 2>&1
                """)
            #expect(diskTest.contains("fails with EAGAIN\" passed"), "\(diskTest)")

            try host.makeGadgetZero()
            try host.run(
                """
                cd /tmp; export LD_LIBRARY_PATH=/mnt/runtime USBVFIOD_REAL_DEVICES=1
                ( /mnt/program/\(try testProgram()) --testing-library swift-testing \
                    --filter RealDeviceTests >tests.log 2>&1; echo $? >tests.status ) &
                """)
            for device in ["keyboard", "stick"] {
                try host.wait(
                    until: "[[ -e /tmp/unplug-\(device) || -e /tmp/tests.status ]]",
                    within: .seconds(120))
                try host.qmp.unplug(device)
            }
            try host.wait(until: "[[ -e /tmp/tests.status ]]", within: .seconds(60))
            let log = try host.run("cat /tmp/tests.log")
            #expect(try host.run("cat /tmp/tests.status") == "0", "\(log)")
            // The status is 0 also when all tests were skipped.
            #expect(log.contains("Suite RealDeviceTests passed"))
        }

        /// Goal: a server that may not open any device serves one whose descriptor it receives at
        /// the control socket, to a client that speaks as Cloud Hypervisor does.
        @Test func `an unprivileged server serves a stick whose descriptor it receives`() throws {
            let host = try lab.bootHost(
                .newest, devices: [.controller, .stick(lab.image(mebibytes: 16))])
            let sum = try host.run("sha256sum </dev/sda")
            let port = try host.port(vendor: "46f4", product: "0001")
            let control = "\(GuestHost.serverFolder)/control"
            try host.serve(user: 65534, "--control-path \(control)")

            let absent = try host.program(
                "attach host:port=1-9.9 --id none --control-path \(control)")
            #expect(absent.status == 0, "a rule without a device is accepted: \(absent.output)")
            let attached = try host.program(
                "attach host:port=\(port) --id stick --control-path \(control)")
            #expect(attached.status == 0, "\(attached.output)")
            let list = try host.program("list --json --control-path \(control)").output
            #expect(list.contains(#""id":"stick""#) && list.contains(#""state":"attached""#))
            #expect(list.contains(#""state":"waiting""#))

            let socket = "\(GuestHost.serverFolder)/socket"
            let program = try testProgram()
            let tests = try host.execute(
                """
                cd /tmp; LD_LIBRARY_PATH=/mnt/runtime USBVFIOD_SERVED_STICK=\(socket) \
                    /mnt/program/\(program) --testing-library swift-testing \
                    --filter ServedStickTests 2>&1
                """, timeout: .seconds(120))
            let log = try host.serverLog()
            #expect(tests.status == 0, "\(tests.output)\n\(log)")
            #expect(tests.output.contains("Suite ServedStickTests passed"))
            #expect(try host.run("sha256sum <\(socket).read") == sum)

            // After the detach the kernel driver of the host is bound again.
            let detached = try host.program("detach stick --control-path \(control)")
            #expect(detached.status == 0, "\(detached.output)")
            try host.wait(until: "[[ -e /sys/block/sda ]]")
            #expect(try host.isServing())
        }

        /// The file name of the running test program.
        private func testProgram() throws -> String {
            let path = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
            return (path as NSString).lastPathComponent
        }
    }
}

extension Machine.Device {
    /// A SuperSpeed UAS device without a disk: the tests use only its descriptors.
    fileprivate static func uasDisk(_ serial: String, at controller: String) -> Machine.Device {
        .qemu("-device", "usb-uas,bus=\(controller).0,serial=\(serial)")
    }
}

extension GuestHost {
    /// Attaches Linux's gadget zero: configuration 3 is a source and a sink, configuration 2 a
    /// loop.
    func makeGadgetZero() throws {
        try run(
            """
            modprobe --all dummy_hcd libcomposite
            mountpoint -q /sys/kernel/config || mount -t configfs config /sys/kernel/config
            mkdir /sys/kernel/config/usb_gadget/zero; cd /sys/kernel/config/usb_gadget/zero
            echo 0x0525 >idVendor; echo 0xa4a0 >idProduct
            mkdir strings/0x409; echo zero >strings/0x409/serialnumber
            mkdir functions/SourceSink.0 functions/Loopback.0 configs/source.3 configs/loop.2
            ln -s functions/SourceSink.0 configs/source.3/
            ln -s functions/Loopback.0 configs/loop.2/
            ls /sys/class/udc >UDC
            """)
        _ = try address(vendor: "0525", product: "a4a0")
    }
}
