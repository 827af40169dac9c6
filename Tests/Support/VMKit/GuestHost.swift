// SPDX-License-Identifier: Apache-2.0

import Foundation

/// A guest that is a host itself: it has USB devices, runs usbvfiod, and boots an inner guest under
/// its own KVM. Above the emulated bus, its devices do not differ from real ones.
public final class GuestHost: Shell {
    private let guest: Guest
    public static let serverFolder = "/run/usbvfiod"

    init(_ lab: Lab, _ kernel: Kernel, devices: [Machine.Device]) throws {
        var machine = Machine(kernel, devices: devices)
        machine.memory = 3072
        machine.processors = 2
        machine.folders = Self.program
        machine.ports = ["inner"]
        guest = try lab.boot(machine)
        try guest.run("modprobe kvm-amd || modprobe kvm-intel; test -c /dev/kvm")
        // udev reports attached devices, as on any host.
        try guest.run(
            """
            mkdir -p /run/udev
            systemd-udevd --daemon 2>/dev/null || /usr/lib/systemd/systemd-udevd --daemon
            udevadm settle
            """)
    }

    /// QEMU's monitor, which attaches and detaches the USB devices.
    public var qmp: QMP { guest.qmp }
    public var logTail: String { guest.logTail }

    public func execute(_ command: String, timeout: Duration) throws -> CommandResult {
        try guest.execute(command, timeout: timeout)
    }

    /// The bus and address of the device with this vendor and product ID.
    public func address(vendor: String, product: String) throws -> USBAddress {
        let here = "grep -lx \(vendor) /sys/bus/usb/devices/*/idVendor | xargs dirname"
        try wait(until: "grep -qx \(vendor) /sys/bus/usb/devices/*/idVendor")
        let numbers = try run(
            """
            for device in $(\(here)); do
                grep -qx \(product) $device/idProduct && cat $device/busnum $device/devnum
            done; true
            """
        ).split(separator: "\n").compactMap { Int($0) }
        guard numbers.count == 2 else {
            throw VMError("not exactly one device \(vendor):\(product)", detail: try run("lsusb"))
        }
        return USBAddress(bus: numbers[0], device: numbers[1])
    }

    /// The kernel's name of the port that the device with this vendor and product ID is attached
    /// to.
    public func port(vendor: String, product: String) throws -> String {
        let address = try address(vendor: vendor, product: product)
        return try run(
            """
            cd /sys/bus/usb/devices
            for device in [0-9]*-*; do
                [[ $device != *:* && $(<$device/busnum) == \(address.bus) &&
                    $(<$device/devnum) == \(address.device) ]] && echo $device
            done; true
            """)
    }

    /// Runs usbvfiod in the guest to its end.
    public func program(_ arguments: String) throws -> CommandResult {
        try execute(
            "LD_LIBRARY_PATH=/mnt/runtime /mnt/program/\(Self.programName) \(arguments)",
            timeout: .seconds(60))
    }

    /// Starts usbvfiod in the guest, and waits until it listens.
    public func serve(_ devices: String...) throws {
        try serve(user: 0, devices.map { "--device '\($0)'" }.joined(separator: " "))
    }

    /// Starts usbvfiod as a user, with any arguments, and waits until it listens.
    public func serve(user: Int, _ arguments: String) throws {
        try run(
            """
            mkdir -p \(Self.serverFolder); cd \(Self.serverFolder); rm -f socket
            chown \(user) .
            LD_LIBRARY_PATH=/mnt/runtime setsid setpriv --reuid=\(user) --regid=\(user) \
                --clear-groups /mnt/program/\(Self.programName) \
                --socket-path $PWD/socket -v \(arguments) >log 2>&1 &
            echo $! >pid
            """)
        do {
            try wait(until: "grep -q 'listening at' \(Self.serverFolder)/log")
        } catch {
            throw VMError("usbvfiod did not start in the outer guest", detail: try serverLog())
        }
    }

    /// Whether usbvfiod runs in the guest.
    public func isServing() throws -> Bool {
        try execute("kill -0 $(<\(Self.serverFolder)/pid)", timeout: .seconds(120)).status == 0
    }

    /// The number of threads of usbvfiod in the guest.
    public func serverThreads() throws -> Int {
        Int(try run("ls /proc/$(<\(Self.serverFolder)/pid)/task | wc -l")) ?? 0
    }

    /// The log of usbvfiod in the guest.
    public func serverLog() throws -> String { try run("cat \(Self.serverFolder)/log") }

    /// Boots the inner guest, by default with the controller that usbvfiod serves, and waits until
    /// it has booted.
    public func bootInner(
        _ kernel: Kernel,
        devices: [Machine.Device] = [.usbvfiod("\(GuestHost.serverFolder)/socket")]
    ) throws -> InnerGuest {
        let folder = "/run/inner"
        let machine = Machine(kernel, devices: devices)
        let arguments = machine.arguments(
            at: Machine.Site(
                qemu: "qemu-system-x86_64", accelerator: "kvm", tree: "/bed", folder: folder,
                logLevel: 4))
        let command = arguments.map { "'\($0)'" }.joined(separator: " ")
        try run(
            """
            rm -rf \(folder); mkdir -p \(folder); cd \(folder)
            setsid \(command) -d cpu_reset -D resets.log >qemu.log 2>&1 &
            echo $! >pid
            until [[ -S agent ]] || ! kill -0 $(<pid); do sleep 0.05; done
            setsid socat UNIX-CONNECT:agent "OPEN:/dev/$(/usr/lib/bed/port inner)" >socat.log 2>&1 &
            """)
        guard let agent = guest.innerAgents["inner"] else {
            throw VMError("the outer guest has no port for an inner one")
        }
        do {
            try agent.waitUntilReady(before: Deadline(.seconds(300)))
        } catch {
            let logs = try run("cd \(folder); tail -n 20 qemu.log socat.log console.log")
            throw VMError("\(error)", detail: "\(logs)\nlog of usbvfiod:\n\(try serverLog())")
        }
        return InnerGuest(host: self, agent: agent)
    }

    private static let programName = (Server.binary as NSString).lastPathComponent

    /// The folders of usbvfiod and, unless it is linked statically, of the Swift runtime.
    private static var program: [String: String] {
        var folders = ["program": (Server.binary as NSString).deletingLastPathComponent]
        let find = "ldd '\(Server.binary)' | sed -n 's/.*libswiftCore.so => \\([^ ]*\\).*/\\1/p'"
        if let library = try? CompletedProgram.firstLine(of: "sh", "-c", find), !library.isEmpty {
            folders["runtime"] = (library as NSString).deletingLastPathComponent
        }
        return folders
    }
}

/// A guest of a guest.
public final class InnerGuest: Shell {
    private let host: GuestHost
    private let agent: Agent

    init(host: GuestHost, agent: Agent) {
        self.host = host
        self.agent = agent
    }

    public var logTail: String {
        (try? agent.run("dmesg | tail -n 25", timeout: .seconds(20)).output)
            ?? (try? host.run("tail -n 25 /run/inner/console.log")) ?? ""
    }

    public func execute(_ command: String, timeout: Duration) throws -> CommandResult {
        do {
            return try agent.run(command, timeout: timeout)
        } catch {
            // The guest may have crashed, or may wait for its USB controller.
            let details = try? host.run(
                """
                tail -n 20 /run/inner/*.log \(GuestHost.serverFolder)/log; dmesg | tail -n 10
                head /proc/$(<\(GuestHost.serverFolder)/pid)/task/*/{comm,wchan}
                ls -l /proc/$(<\(GuestHost.serverFolder)/pid)/fd
                head /proc/$(</run/inner/pid)/task/*/{wchan,stat}
                registers='{"execute":"human-monitor-command","arguments":{"command-line":"info registers"}}'
                { echo '{"execute":"qmp_capabilities"}'
                  for _ in 1 2 3; do echo "$registers"; sleep 0.3; done
                } | timeout 10 socat -t 2 - UNIX-CONNECT:/run/inner/qmp | fold -w 200
                """)
            throw GuestNotResponding(
                description: "\(error)\n\(details ?? "the outer guest does not respond either")")
        }
    }
}

/// A guest does not respond, or has rebooted by itself.
public struct GuestNotResponding: Error, CustomStringConvertible {
    /// The failed command, followed by details that help to find the cause.
    public let description: String
}

/// The address of a device on a host: its bus and its number on the bus.
public struct USBAddress: Sendable {
    /// The bus's number.
    public let bus: Int
    /// The device's number on the bus.
    public let device: Int

    /// The device node, which names the device on usbvfiod's command line.
    public var path: String {
        func digits(_ number: Int) -> String {
            String(repeating: "0", count: max(0, 3 - "\(number)".count)) + "\(number)"
        }
        return "/dev/bus/usb/\(digits(bus))/\(digits(device))"
    }

    /// The specification that names the device on usbvfiod's command line.
    public var specification: String { "host:bus=\(bus),address=\(device)" }
}
