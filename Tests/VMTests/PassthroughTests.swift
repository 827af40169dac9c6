// SPDX-License-Identifier: Apache-2.0

import Testing
import VMKit

extension VMTests {
    /// A guest in a guest: the outer one is a host with a USB bus, whose devices usbvfiod passes
    /// through to the inner one.
    struct PassthroughTests {
        let lab: Lab

        init() throws { lab = try Lab() }

        /// How a device of the host is named on usbvfiod's command line.
        enum Naming: CaseIterable {
            case bySpecification
            case byPath

            func name(_ address: USBAddress) -> String {
                self == .byPath ? address.path : address.specification
            }
        }

        /// Goal: an inner guest uses the host's stick and keyboard as its own, and survives that the
        /// stick is pulled out.
        @Test(arguments: Naming.allCases)
        func `an inner guest uses the host's stick and keyboard until the stick is unplugged`(
            naming: Naming
        ) throws {
            let image = try lab.image(mebibytes: 32)
            let host = try lab.bootHost(
                .stable, devices: [.controller, .stick(image), .keyboard])
            let stick = try host.address(vendor: "46f4", product: "0001")
            let keyboard = try host.address(vendor: "0627", product: "0001")
            try host.serve(naming.name(stick), naming.name(keyboard))
            let inner = try host.bootInner(.newest)

            // The stick: all of it, and changes to it.
            let disk = try inner.disk()
            #expect(try inner.checksum(of: disk) == image.checksum())
            try inner.run(
                "head -c 4M /dev/urandom >/tmp/data && cp /tmp/data \(disk) && sync \(disk)")
            #expect(try inner.checksum(of: "/tmp/data") == image.checksum(mebibytes: 4))
            try inner.expectNoComplaints()

            // The keyboard.
            #expect(
                try inner.keys(pressing: ["u", "s", "b"], at: host) == ["KEY_U", "KEY_S", "KEY_B"])

            // The stick goes while it is read.
            try inner.run(
                """
                touch /tmp/reading
                { while dd if=\(disk) of=/dev/null bs=64k iflag=direct; do :; done
                  rm /tmp/reading
                } >/dev/null 2>&1 &
                until read -r reads _ </sys/block/sda/inflight && ((reads)); do :; done
                """)
            try host.qmp.unplug("stick")
            try inner.wait(until: "[[ ! -e /tmp/reading && ! -e /sys/block/sda ]]")
            try inner.wait(until: "dmesg | grep -q 'USB disconnect'")
            #expect(try host.isServing())
            #expect(try inner.keys(pressing: ["x"], at: host) == ["KEY_X"])
        }
    }
}

extension Shell {
    /// The keys that this guest sees pressed while the host's keyboard is typed on.
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
