// SPDX-License-Identifier: Apache-2.0

import Testing
import VMKit

extension VMTests {
    /// Tests of devices that are attached, changed and detached while a guest runs.
    struct ControlTests {
        let lab: Lab

        init() throws { lab = try Lab() }

        /// Goal: the control requests attach, insert, eject and detach look to the guest like a
        /// stick that is plugged in, whose medium is changed, and that is unplugged.
        @Test
        func `a running guest sees a stick attached, its medium changed, and the stick detached`()
            throws
        {
            let first = try lab.image(mebibytes: 16)
            let second = try lab.image(mebibytes: 8)
            let server = try lab.serve()
            let guest = try lab.boot(.newest, with: server)

            try server.control("attach", "storage:file=\(first.path)", "--id", "stick")
            let disk = try guest.disk()
            #expect(try guest.checksum(of: disk) == first.checksum())
            try guest.run("head -c 1M /dev/urandom >/tmp/data && cp /tmp/data \(disk) && sync")
            try guest.expectNoComplaints()

            try server.control("insert", "stick", "file=\(second.path)")
            #expect(try first.checksum(mebibytes: 1) == guest.checksum(of: "/tmp/data"))
            // Linux checks for a medium change when the disk is opened.
            #expect(try guest.checksum(of: disk) == second.checksum())
            #expect(try guest.run("cat /sys/block/sda/size") == "\(8 << 11)")

            try server.control("eject", "stick")
            #expect(try guest.execute("head -c 1 \(disk)", timeout: .seconds(60)).status != 0)
            try server.control("insert", "stick", "file=\(first.path),readonly")
            #expect(try guest.checksum(of: disk) == first.checksum())
            #expect(try guest.run("cat /sys/block/sda/ro") == "1")

            try server.control("detach", "stick")
            try guest.wait(until: "[[ ! -e /sys/block/sda ]]")
            try guest.wait(until: "! grep -qs 46f4 /sys/bus/usb/devices/*/idVendor")
            #expect(server.isRunning)
            #expect(try server.terminate() == 0)
        }
    }
}
