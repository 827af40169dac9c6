// SPDX-License-Identifier: Apache-2.0

import Foundation
import Testing
import VMKit

extension NestedVMTests {
    /// Tests with a guest in a guest: the outer guest is a host with a USB bus, whose devices
    /// usbvfiod passes through to the inner guest.
    struct PassthroughTests {
        /// Goal: an inner guest uses the host's stick, UAS disk, keyboard and gadget zero, sees the
        /// stick unplugged while it reads, and has it again after it was plugged in again.
        @Test
        func `an inner guest uses the host's disks, keyboard and gadget, named by port and path`()
            throws
        {
            try withLab { lab in
                let image = try lab.image(mebibytes: 16)
                let fast = try lab.image(mebibytes: 24)
                let host = try lab.bootHost(
                    .stable, devices: [.controller, .keyboard, .fastDisk(fast)] + stick(image))
                try host.makeGadgetZero()
                let keyboard = try host.address(vendor: "0627", product: "0001")
                let zero = try host.address(vendor: "0525", product: "a4a0")
                try host.serve(
                    "host:port=\(host.port(vendor: "46f4", product: "0001"))", keyboard.path,
                    "host:port=\(host.port(vendor: "46f4", product: "0003"))", zero.specification)
                let inner = try host.bootInner(.newest)

                // The whole contents of the disks, and writes.
                let disk = try inner.disk(under: "usb-storage")
                try expectDisk(disk, of: inner, holds: image)
                let fastDisk = try inner.disk(under: "uas")
                try expectDisk(fastDisk, of: inner, holds: fast)
                try expectStreams(fastDisk, of: inner, at: host)
                try expectUSBTest(inner, at: host)
                try inner.expectNoComplaints()

                // The keyboard.
                #expect(
                    try inner.keys(pressing: ["u", "s", "b"], at: host) == [
                        "KEY_U", "KEY_S", "KEY_B",
                    ])

                // The stick is unplugged while the guest reads it.
                try inner.remove(disk) { try host.qmp.unplug("stick") }
                try inner.wait(until: "dmesg | grep -q 'USB disconnect'")
                #expect(try host.isServing())
                #expect(try inner.keys(pressing: ["x"], at: host) == ["KEY_X"])
                try plugIn(stick: "STICK", at: host)
                #expect(
                    try inner.checksum(of: inner.disk(under: "usb-storage")) == image.checksum())
            }
        }

        /// Goal: devices of every class work in the inner guest, and a rule attaches its device
        /// when it is plugged in later and each time that it is plugged in again.
        @Test
        func
            `sound, serial lines, a network, a tablet plugged in later, a stick replugged ten times`()
            throws
        {
            try withLab { lab in
                let image = try lab.image(mebibytes: 16)
                let sound = FileManager.default.temporaryDirectory
                    .appending(path: "usbvfiod-sound-\(UInt32.random(in: 0 ... .max)).wav")
                defer { try? FileManager.default.removeItem(at: sound) }
                let host = try lab.bootHost(
                    .newest,
                    devices: [
                        .manyPorts, .soundCard(recordingTo: sound.path), .serialLine,
                    ] + stick(image))
                try host.makeModem()
                try expectList(at: host)
                try host.serve(
                    "host:vendor=0x46f4,product=0x0001,serial=STICK",
                    "host:vendor=0627,product=0001",
                    "host:vendor=46f4,product=0002", "host:vendor=0403,product=6001",
                    "host:vendor=0x0525,product=0xa4a7")
                try host.wait(
                    until: "grep -q 'waiting for one to be' \(GuestHost.serverFolder)/log"
                )
                let inner = try host.bootInner(.newest)
                try inner.run("modprobe --all snd-usb-audio ftdi_sio cdc_acm cdc_ncm")

                try expectBytes(
                    between: "/dev/ttyUSB0", "/dev/$(/usr/lib/bed/port serial)", inner, host)
                try expectBytes(between: "/dev/ttyACM0", "/dev/ttyGS0", inner, host)
                try expectNetwork(inner, host)
                try host.qmp.execute(
                    "device_add", ["driver": "usb-tablet", "bus": "usb.0", "id": "tablet"])
                try expectPointer(inner, at: host)

                try expectSound(from: inner, in: sound)

                // Without the delay, a replugged stick is used at once.
                try inner.run("echo 0 >/sys/module/usb_storage/parameters/delay_use")
                let threads = try host.serverThreads()
                for round in 1...10 {
                    let disk = try inner.disk(under: "usb-storage")
                    let number = try inner.firstNumber(of: disk)
                    #expect(try number == image.firstNumber(), "round \(round)")
                    try inner.remove(disk) { try host.qmp.unplug("stick") }
                    try plugIn(stick: "STICK", at: host)
                    #expect(try host.isServing(), "round \(round)")
                }
                #expect(
                    try inner.checksum(of: inner.disk(under: "usb-storage")) == image.checksum())
                // Unplugged devices leave no threads.
                #expect(try host.serverThreads() == threads)
            }
        }

        // MARK: - Steps

        /// Runs a scenario, and runs it once more if a guest on an emulated processor stops
        /// responding.
        ///
        /// Inner guests on an emulated processor hang or reboot now and then; the cause is not
        /// known.
        private func withLab(_ scenario: (Lab) throws -> Void) throws {
            do {
                try scenario(Lab())
            } catch let error as GuestNotResponding where !Bed.hasKVM {
                print(
                    "NestedVMTests: an inner guest does not respond; running its test again: \(error)"
                )
                try scenario(Lab())
            }
        }

        /// Checks that the disk's contents are those of the image, before and after a write.
        private func expectDisk(
            _ disk: String, of inner: InnerGuest, holds image: DiskImage
        ) throws {
            #expect(try inner.checksum(of: disk) == image.checksum())
            try inner.run(
                "head -c 4M /dev/urandom >/tmp/data && cp /tmp/data \(disk) && sync \(disk)")
            #expect(try inner.checksum(of: "/tmp/data") == image.checksum(mebibytes: 4))
        }

        /// Checks that the disk runs at SuperSpeed, and that three of its endpoints have streams in
        /// the inner guest's controller and in the host's.
        private func expectStreams(
            _ disk: String, of inner: InnerGuest, at host: GuestHost
        ) throws {
            let name = disk.dropFirst("/dev/".count)
            #expect(
                try inner.run("cat $(readlink -f /sys/block/\(name)/device)/../../../../speed")
                    == "5000")
            let streams = "cat /sys/kernel/debug/usb/xhci/*/devices/*/ep*/stream_context_array"
            for guest in [inner as any Shell, host] {
                let arrays = try guest.run("\(streams) | grep Allocated; true")
                // Status, data in and data out.
                #expect(arrays.split(separator: "\n").count == 3, "\(arrays)")
            }
        }

        /// Runs all cases of `usbtest` with gadget zero.
        private func expectUSBTest(_ inner: InnerGuest, at host: GuestHost) throws {
            let device = try #require(try inner.usbTestDevices(count: 1, setting: nil).first)
            // It has neither interrupt nor isochronous endpoints: dummy_hcd, its controller,
            // supports no isochronous transfers.
            let missing = [15, 16, 22, 23, 25, 26]
            let options = "-c 10 -s 4096 -v 512 -g 16"
            for (test, outcome) in try inner.runAll(on: device, options: options) {
                #expect(
                    outcome == (missing.contains(test.number) ? .skipped : .passed),
                    "\(test)\n\(inner.usbTestLog)")
            }
        }

        /// A stick that can be unplugged and plugged in again: the image is a block node of its
        /// own.
        private func stick(_ image: DiskImage) -> [Machine.Device] {
            [
                .qemu(
                    "-blockdev",
                    "driver=raw,node-name=image,file.driver=file,file.filename=\(image.path)"),
                .qemu(
                    "-device", "usb-storage,bus=usb.0,port=4,id=stick,drive=image,serial=STICK"),
            ]
        }

        private func plugIn(stick serial: String, at host: GuestHost) throws {
            try host.qmp.execute(
                "device_add",
                [
                    "driver": "usb-storage", "bus": "usb.0", "port": "4", "id": "stick",
                    "drive": "image", "serial": serial,
                ])
        }

        /// Checks the text and the JSON of `usbvfiod devices`, also for names with special
        /// characters.
        private func expectList(at host: GuestHost) throws {
            let port = try host.port(vendor: "46f4", product: "0001")
            let text = try host.program("devices")
            #expect(text.status == 0)
            for part in [
                "host:port=\(port) ", "host:vendor=0x46f4,product=0x0001,serial=STICK",
                "mass storage", "audio", "vendor specific", "communication", "hub",
            ] { #expect(text.output.contains(part), "\(part) is not in:\n\(text.output)") }
            #expect(!text.output.contains("\u{1b}"))

            let json = try host.program("devices --json").output
            let list = try #require(
                try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any])
            let devices = try #require(list["devices"] as? [[String: Any]])
            let modem = try #require(devices.first { $0["product"] as? String == "a4a7" })
            #expect(modem["manufacturerName"] as? String == #"[31m"quoted\" \ é"#)
            #expect(modem["serial"] as? String == "A,B")
            #expect(modem["obstacle"] is NSNull)
            #expect(
                modem["specifications"] as? [String] == [
                    "host:port=\(try host.port(vendor: "0525", product: "a4a7"))",
                    "host:vendor=0x0525,product=0xa4a7,serial=A,,B",
                ])
            #expect(devices.contains { $0["hub"] as? Bool == true })
        }

        /// Sends a line in each direction between two terminals, one in each guest.
        private func expectBytes(
            between innerEnd: String, _ outerEnd: String, _ inner: InnerGuest, _ host: GuestHost
        ) throws {
            try inner.wait(until: "[[ -c \(innerEnd) ]]")
            try inner.run("stty -F \(innerEnd) raw -echo 115200")
            try host.run("[[ \(outerEnd) == *tty* ]] && stty -F \(outerEnd) raw -echo; true")
            // The reader opens the terminal first: a closed terminal discards its input.
            try inner.run("setsid head -n 1 <\(innerEnd) >/tmp/received 2>/dev/null &")
            try inner.wait(until: "pgrep -x head")
            try host.run("echo 'down the line' >\(outerEnd)")
            try inner.wait(until: "grep -qx 'down the line' /tmp/received")
            try host.run("rm -f /tmp/received; setsid head -n 1 <\(outerEnd) >/tmp/received &")
            try host.wait(until: "pgrep -x head")
            try inner.run("echo 'and up' >\(innerEnd)")
            try host.wait(until: "grep -qx 'and up' /tmp/received")
        }

        /// Pings the other end of the modem's network with large packets.
        private func expectNetwork(_ inner: InnerGuest, _ host: GuestHost) throws {
            try host.run(
                """
                card=$(</sys/kernel/config/usb_gadget/modem/functions/ncm.0/ifname)
                busybox ip address add 10.7.0.1/24 dev $card && busybox ip link set $card up
                """)
            let find = "card=(/sys/bus/usb/drivers/cdc_ncm/*:*/net/*)"
            try inner.wait(until: "{ \(find); [[ -e $card ]]; }")
            try inner.run(
                """
                \(find); card=${card##*/}
                busybox ip address add 10.7.0.2/24 dev $card && busybox ip link set $card up
                busybox ping -c 3 -w 60 -s 20000 10.7.0.1
                """)
        }

        /// Plays a ramp in the inner guest, and checks that each sample which the sound card
        /// records is one higher than the previous.
        private func expectSound(from inner: InnerGuest, in file: URL) throws {
            let ramp = 16384
            let samples = 6 * ramp
            try inner.wait(until: "grep -q USB-Audio /proc/asound/cards")
            // Kernel messages on the console would delay the next packets. All of the sound fits
            // into the buffer, since the driver aborts when a small one underruns.
            try inner.run(
                """
                dmesg --console-level 1
                card=$(sed -n 's/^ *\\([0-9]*\\) .*USB-Audio.*/\\1/p' /proc/asound/cards)
                LC_ALL=C awk 'BEGIN { for (i = 0; i < \(ramp); i++) {
                    s = i + 4096
                    printf "%c%c%c%c", s % 256, int(s / 256), s % 256, int(s / 256) } }' \
                    >/tmp/ramp
                cat /tmp/ramp{,,,,,} >/tmp/sound
                timeout 60 aplay -q -D hw:$card --buffer-time=4000000 --period-time=100000 \
                    -t raw -f S16_LE -r 48000 -c 2 /tmp/sound
                """)
            let bytes = try [UInt8](Data(contentsOf: file).dropFirst(44))
            var recorded: [Int] = []
            for offset in stride(from: 0, to: bytes.count - 1, by: 4) {
                let sample = Int(bytes[offset]) + 256 * Int(bytes[offset + 1])
                if sample != 0 { recorded.append(sample) }
            }
            // A busy machine drops some samples, and the last are still in QEMU's buffer.
            #expect(recorded.count > samples * 8 / 10)
            var rises = 0
            for (sample, next) in zip(recorded, recorded.dropFirst()) where next - sample == 1 {
                rises += 1
            }
            #expect(rises > recorded.count * 8 / 10)
        }

        /// Moves the tablet's pointer and waits until the inner guest has both coordinates.
        private func expectPointer(_ inner: InnerGuest, at host: GuestHost) throws {
            try inner.wait(until: "grep -qi 'usb tablet' /sys/class/input/event*/device/name")
            try inner.run(
                """
                for device in /sys/class/input/event*; do
                    grep -qi 'usb tablet' $device/device/name && tablet=/dev/input/${device##*/}
                done
                setsid evtest $tablet >/tmp/pointer 2>&1 &
                """)
            try inner.wait(until: "grep -q 'Testing' /tmp/pointer")
            for (axis, value) in [("x", 0x1234), ("y", 0x2345)] {
                let event: [String: Any] = ["type": "abs", "data": ["axis": axis, "value": value]]
                try host.qmp.execute("input-send-event", ["events": [event]])
            }
            try inner.wait(
                until: "grep -q 'ABS_X.*value \(0x1234)' /tmp/pointer && "
                    + "grep -q 'ABS_Y.*value \(0x2345)' /tmp/pointer")
            try inner.run("pkill evtest")
        }
    }
}

extension Machine.Device {
    /// A sound card on QEMU's own controller, which records to a WAV file.
    fileprivate static func soundCard(recordingTo path: String) -> Machine.Device {
        .qemu(
            "-audiodev",
            "wav,id=sound,path=\(path),out.frequency=48000,out.channels=2,out.format=s16",
            "-device", "usb-audio,bus=usb.0,id=sound-card,audiodev=sound")
    }

    /// A SuperSpeed UAS disk on QEMU's own controller.
    fileprivate static func fastDisk(_ image: DiskImage) -> Machine.Device {
        .qemu(
            "-drive", "if=none,id=fast-image,format=raw,file=\(image.path)",
            "-device", "usb-uas,bus=usb.0,id=fast",
            "-device", "scsi-hd,bus=fast.0,drive=fast-image")
    }

    /// QEMU's own controller with 8 ports of each kind; the default is 4.
    fileprivate static let manyPorts = Machine.Device.qemu("-device", "qemu-xhci,id=usb,p2=8,p3=8")

    /// An FTDI serial converter whose line is connected to the outer guest's port `serial`.
    fileprivate static var serialLine: Machine.Device {
        let name = "usbvfiod-serial-\(UInt32.random(in: 0 ... .max))"
        return .qemu(
            "-chardev", "socket,id=line,path=\(name),abstract=on,server=on,wait=off",
            "-device", "usb-serial,bus=usb.0,id=converter,chardev=line",
            "-chardev", "socket,id=serial,path=\(name),abstract=on,server=off",
            "-device", "virtserialport,chardev=serial,name=serial")
    }
}

extension GuestHost {
    /// Attaches a modem made with Linux's gadget framework, with a serial line, a network, and
    /// strings with control and quote characters.
    fileprivate func makeModem() throws {
        try run(
            """
            modprobe --all dummy_hcd libcomposite usb_f_acm usb_f_ncm
            mountpoint -q /sys/kernel/config || mount -t configfs config /sys/kernel/config
            mkdir /sys/kernel/config/usb_gadget/modem; cd /sys/kernel/config/usb_gadget/modem
            echo 0x0525 >idVendor; echo 0xa4a7 >idProduct; echo 2 >bDeviceClass
            mkdir strings/0x409 functions/acm.0 functions/ncm.0 configs/modem.1
            printf '\\033[31m"quoted\\\\" \\\\ \\303\\251' >strings/0x409/manufacturer
            echo Modem >strings/0x409/product; echo A,B >strings/0x409/serialnumber
            ln -s functions/acm.0 configs/modem.1/
            ln -s functions/ncm.0 configs/modem.1/
            ls /sys/class/udc >UDC
            """)
        _ = try address(vendor: "0525", product: "a4a7")
    }
}

extension Shell {
    /// The first eight bytes of a disk in the format of `od -t x8`, read past the page cache.
    fileprivate func firstNumber(of disk: String) throws -> String {
        try run("dd if=\(disk) iflag=direct bs=4096 count=1 status=none | od -A n -N 8 -t x8")
    }

    /// Removes a disk while it is read, and waits until the kernel has removed it.
    ///
    /// - Parameter removal: unplugs the disk.
    func remove(_ disk: String, _ removal: () throws -> Void) throws {
        let name = disk.dropFirst("/dev/".count)
        try run(
            """
            touch /tmp/reading
            { while dd if=\(disk) of=/dev/null bs=64k iflag=direct; do :; done
              rm /tmp/reading
            } >/dev/null 2>&1 &
            until read -r reads _ </sys/block/\(name)/inflight && ((reads)); do :; done
            """)
        try removal()
        try wait(until: "[[ ! -e /tmp/reading && ! -e /sys/block/\(name) ]]")
    }

    /// Types keys on the host's keyboard and returns the keys that this guest sees pressed.
    func keys(pressing keys: [String], at host: GuestHost) throws -> [String] {
        try wait(until: "grep -qi 'usb keyboard' /sys/class/input/event*/device/name")
        try run(
            """
            for device in /sys/class/input/event*; do
                grep -qi 'usb keyboard' $device/device/name && keyboard=/dev/input/${device##*/}
            done
            setsid evtest $keyboard >/tmp/keys 2>&1 &
            """)
        try wait(until: "grep -q 'Testing' /tmp/keys")
        try host.qmp.type(keys)
        try wait(until: "(($(grep -c 'EV_KEY.*value 0' /tmp/keys) == \(keys.count)))")
        return try run("pkill evtest; sed -n 's/.*(EV_KEY).*(\\(.*\\)), value 1/\\1/p' /tmp/keys")
            .split(separator: "\n").map(String.init)
    }
}

extension DiskImage {
    /// The first eight bytes in the format of ``Shell/firstNumber(of:)``.
    fileprivate func firstNumber() throws -> String {
        let number = try prefix(8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        let digits = String(number, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
