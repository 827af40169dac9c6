// SPDX-License-Identifier: Apache-2.0

import Testing
import VMKit

extension VMTests {
    /// Tests of the bed without usbvfiod. If they fail, the bed is at fault and the results of the
    /// other tests say nothing about usbvfiod.
    struct BedTests {
        let lab: Lab

        init() throws { lab = try Lab() }

        @Test(arguments: Kernel.allCases)
        func `a guest reads, writes and reboots with QEMU's own controller`(kernel: Kernel) throws {
            let image = try lab.image(mebibytes: 16)
            let guest = try lab.boot(Machine(kernel, devices: [.controller, .stick(image)]))

            let disk = try guest.disk()
            #expect(try guest.checksum(of: disk) == image.checksum())
            try guest.run("head -c 1M /dev/zero >\(disk); sync")
            #expect(try image.prefix(1 << 20).allSatisfy { $0 == 0 })
            try guest.reboot()
            #expect(try guest.checksum(of: guest.disk()) == image.checksum())
            #expect(try guest.execute("exit 7", timeout: .seconds(10)).status == 7)
            try guest.expectNoComplaints()
            try guest.shutDown()
        }
    }
}
