// SPDX-License-Identifier: Apache-2.0

import Testing
import VMKit

extension VMTests {
    /// Tests of a guest with a stick whose contents are an image file.
    struct StorageTests {
        let lab: Lab

        init() throws { lab = try Lab() }

        /// Goal: the guest reads the contents of the image, also after the device was suspended.
        @Test(arguments: Kernel.allCases)
        func `a guest reads the whole image, with autosuspend on`(kernel: Kernel) throws {
            let image = try lab.image(mebibytes: 64)
            let server = try lab.serve("storage:file=\(image.path)")
            let guest = try lab.boot(kernel, with: server)
            let disk = try guest.disk()

            try guest.enableAutosuspend()
            #expect(try guest.checksum(of: disk) == image.checksum())
            try guest.wait(until: "grep -qx suspended /sys/block/sda/device/power/runtime_status")
            try guest.wait(
                until: "grep -qx suspended /sys/bus/usb/devices/*-1/power/runtime_status")
            #expect(try guest.checksum(of: disk) == image.checksum())
            try guest.expectNoComplaints()
        }

        /// Goal: data that the guest has synced are in the image, even if the server is then
        /// killed.
        @Test(arguments: Kernel.allCases)
        func `a file system is created, filled and clean, and synced data outlive the server`(
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

        /// Goal: the controller starts again after the driver, the guest or the VMM has restarted.
        @Test(arguments: Kernel.allCases)
        func `driver, guest and VMM can restart with the same server`(kernel: Kernel) throws {
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
            // The cache of a removed disk cannot be flushed, which Linux logs.
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

        /// Goal: all flushed data are in the image after the VMM was killed.
        ///
        /// The guest writes blocks of known contents, flushes each, and then prints its number on
        /// the console, whose log outlives the guest. The VMM is killed while the guest writes.
        @Test(arguments: Kernel.allCases)
        func `all flushed data are in the image after the VMM was killed while writing`(
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

        /// Goal: many commands in flight, with and without streams, read and write the right data.
        @Test(arguments: Kernel.allCases)
        func `a guest with a UAS driver sends a stick many commands at a time`(
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
                // The driver is unbound while commands are in flight, and bound again.
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

        /// Goal: guest memory that the VMM does not share is accessed with messages.
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
    /// Enables autosuspend of every USB device, the disk and the controller, after 200 ms.
    fileprivate func enableAutosuspend() throws {
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
