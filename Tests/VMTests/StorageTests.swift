// SPDX-License-Identifier: Apache-2.0

import Testing
import VMKit

extension VMTests {
    /// A guest and the image file that usbvfiod shows it as a stick.
    struct StorageTests {
        let lab: Lab

        init() throws { lab = try Lab() }

        /// Goal: what the guest reads is the image, also from a device that went to sleep.
        @Test(arguments: Kernel.allCases)
        func `a guest reads the whole image, with autosuspend on`(kernel: Kernel) throws {
            let image = try lab.image(mebibytes: 64)
            let server = try lab.serve("storage:file=\(image.path)")
            let guest = try lab.boot(kernel, with: server)
            let disk = try guest.disk()

            try guest.letUSBSleep()
            #expect(try guest.checksum(of: disk) == image.checksum())
            try guest.wait(until: "grep -qx suspended /sys/block/sda/device/power/runtime_status")
            try guest.wait(
                until: "grep -qx suspended /sys/bus/usb/devices/*-1/power/runtime_status")
            #expect(try guest.checksum(of: disk) == image.checksum())
            try guest.expectNoComplaints()
        }

        /// Goal: data that the guest has flushed is on the disk, even when the server is killed at once.
        @Test(arguments: Kernel.allCases)
        func `a file system is made, filled and clean, and synced data outlive the server`(
            kernel: Kernel
        ) throws {
            let image = try lab.image(mebibytes: 96)
            let server = try lab.serve("storage:file=\(image.path)")
            let guest = try lab.boot(kernel, with: server)
            let disk = try guest.disk()

            try guest.run("mkfs.ext4 -q \(disk) && mount \(disk) /mnt")
            try guest.run(
                "cp -r /usr/share /mnt/files && cd /mnt && find files -type f | sort >list")
            let written = try guest.run("cd /mnt && xargs -d '\\n' cat <list | sha256sum")
            try guest.run("umount /mnt && e2fsck -fn \(disk)")
            try guest.run("mount \(disk) /mnt")
            #expect(try guest.run("cd /mnt && xargs -d '\\n' cat <list | sha256sum") == written)
            try guest.run("umount /mnt")

            try guest.run(
                "head -c 32M /dev/urandom >/tmp/data && cp /tmp/data \(disk) && sync \(disk)")
            server.kill()
            #expect(try image.checksum(mebibytes: 32) == guest.checksum(of: "/tmp/data"))
        }

        /// Goal: the controller starts as often as firmware or a kernel starts it.
        @Test(arguments: Kernel.allCases)
        func `driver, guest and VMM come back to the same server`(kernel: Kernel) throws {
            let image = try lab.image(mebibytes: 16)
            let server = try lab.serve("storage:file=\(image.path)")
            let guest = try lab.boot(kernel, with: server)

            try guest.run("basename /sys/bus/pci/drivers/xhci_hcd/0*:* >/tmp/controller")
            for _ in 1...10 {
                _ = try guest.disk()
                try guest.run("cat /tmp/controller >/sys/bus/pci/drivers/xhci_hcd/unbind")
                try guest.wait(until: "[[ ! -e /sys/block/sda ]]")
                try guest.run("cat /tmp/controller >/sys/bus/pci/drivers/xhci_hcd/bind")
            }
            #expect(try guest.checksum(of: guest.disk()) == image.checksum())
            // A flush of a disk that is detached fails, and the kernel logs that.
            try guest.expectNoComplaints(besides: "DID_NO_CONNECT")

            try guest.reboot()
            #expect(try guest.checksum(of: guest.disk()) == image.checksum())
            try guest.expectNoComplaints()
            try guest.shutDown()

            let next = try lab.boot(kernel, with: server)
            #expect(try next.checksum(of: next.disk()) == image.checksum())
            try next.expectNoComplaints()
            #expect(try server.terminate() == 0)
        }

        /// Goal: a VMM that dies takes no flushed byte with it.
        ///
        /// The guest writes block after block of known contents, flushes each, and then says so on
        /// its console, which outlives it. The VMM is killed while it is at it.
        @Test(arguments: Kernel.allCases)
        func `every flushed byte is there after the VMM was killed while writing`(
            kernel: Kernel
        ) throws {
            let block = 64 << 10
            let image = try lab.image(mebibytes: 32)
            let source = try lab.image(mebibytes: 32)
            let server = try lab.serve("storage:file=\(image.path)")
            let guest = try lab.boot(kernel, with: server)
            let disk = try guest.disk()

            try guest.receive(source, as: "/tmp/source")
            try guest.run(
                """
                mkfifo /tmp/forty
                for ((block = 0; block < 512; block++)); do
                    dd if=/tmp/source of=\(disk) bs=64k count=1 skip=$block seek=$block \
                        conv=notrunc,fdatasync status=none && echo "flushed $block." >/dev/ttyS0
                    if ((block == 40)); then echo >/tmp/forty; fi
                done >/dev/null 2>&1 &
                """)
            try guest.run("read -r </tmp/forty")
            guest.kill()
            let flushed = guest.console.matches(of: #/flushed \d+\./#).count
            #expect(try image.prefix(flushed * block) == source.prefix(flushed * block))

            let next = try lab.boot(kernel, with: server)
            #expect(try next.checksum(of: next.disk()) == image.checksum())
            try next.expectNoComplaints()
        }

        /// Goal: many commands under way, on streams and without them, leave what they were to leave.
        @Test(arguments: Kernel.allCases)
        func `a guest that knows UAS gives a stick many commands at a time`(
            kernel: Kernel
        ) throws {
            let images = [try lab.image(mebibytes: 16), try lab.image(mebibytes: 16)]
            let server = try lab.serve(
                "storage:file=\(images[0].path),uas,product=fast",
                "storage:file=\(images[1].path),uas,product=slow,speed=high")
            let guest = try lab.boot(kernel, with: server)

            for (image, product) in zip(images, ["fast", "slow"]) {
                let find = """
                    disk=$(grep -l "^\(product) *$" /sys/bus/usb/drivers/uas/*:*/host*/target*/*/model)
                    disk=$(echo "${disk%/model}"/block/sd*) && [[ -b /dev/${disk##*/} ]]
                    """
                try guest.wait(until: "{ \(find); } 2>/dev/null")
                let disk = "/dev/" + (try guest.run("\(find); echo ${disk##*/}"))
                #expect(try guest.checksum(of: disk) == image.checksum())
                try guest.run(
                    """
                    fio --name=job --filename=\(disk) --direct=1 --ioengine=libaio --thread \
                        --rw=randrw --rwmixread=30 --bsrange=512-256k --iodepth=24 --size=16M \
                        --verify=crc32c --verify_fatal=1 --output=/tmp/fio || { cat /tmp/fio; exit 1; }
                    sync \(disk)
                    """)
                #expect(try guest.checksum(of: disk) == image.checksum())
                // The driver goes and comes back, in the middle of commands.
                try guest.run(
                    """
                    dd if=\(disk) of=/dev/null bs=1M iflag=direct status=none & sleep 0.1
                    interface=$(realpath /sys/block/\(disk.dropFirst(5))/device/../../..)
                    interface=${interface##*/}
                    echo $interface >/sys/bus/usb/drivers/uas/unbind; wait
                    echo $interface >/sys/bus/usb/drivers/uas/bind
                    """)
                try guest.wait(until: "{ \(find); } 2>/dev/null")
                let again = "/dev/" + (try guest.run("\(find); echo ${disk##*/}"))
                #expect(try guest.checksum(of: again) == image.checksum())
            }
        }

        /// Goal: a VMM that keeps the guest's memory to itself is served through messages.
        @Test(arguments: Kernel.allCases)
        func `a guest whose memory is not shared reads and writes the image`(
            kernel: Kernel
        ) throws {
            let image = try lab.image(mebibytes: 16)
            let server = try lab.serve("storage:file=\(image.path)")
            var machine = Machine(kernel, devices: [.usbvfiod(server.socket)])
            machine.sharesMemory = false
            let guest = try lab.boot(machine)
            let disk = try guest.disk()

            #expect(try guest.checksum(of: disk) == image.checksum())
            try guest.run(
                "head -c 4M /dev/urandom >/tmp/data && cp /tmp/data \(disk) && sync \(disk)")
            #expect(try image.checksum(mebibytes: 4) == guest.checksum(of: "/tmp/data"))
            try guest.expectNoComplaints()
        }
    }
}

extension Shell {
    /// Lets every USB device, the disk on it and the controller go to sleep soon after their last use.
    fileprivate func letUSBSleep() throws {
        try run(
            """
            for delay in /sys/bus/usb/devices/*/power/autosuspend_delay_ms \
                /sys/block/sda/device/power/autosuspend_delay_ms; do echo 200 >$delay; done
            for control in /sys/bus/usb/devices/*/power/control \
                /sys/block/sda/device/power/control \
                /sys/bus/pci/drivers/xhci_hcd/*/power/control; do echo auto >$control; done
            """)
    }
}
