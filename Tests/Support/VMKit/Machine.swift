// SPDX-License-Identifier: Apache-2.0

/// The configuration of a virtual machine, from which QEMU's command line is made.
public struct Machine: Sendable {
    /// The kernel that the machine boots.
    public var kernel: Kernel
    /// The memory in MiB.
    public var memory = 1024
    /// Whether the server can map its memory. If not, each DMA access is a message.
    public var sharesMemory = true
    /// The number of processors.
    public var processors = 1
    /// The controllers and devices under test.
    public var devices: [Device]
    /// Folders of the host that the guest mounts, each as /mnt/NAME.
    public var folders: [String: String] = [:]
    /// Further virtio ports; each ends at a socket of its name on the host.
    public var ports: [String] = []

    /// A machine with a kernel, some devices, and a port for the agent.
    public init(_ kernel: Kernel, devices: [Device] = []) {
        self.kernel = kernel
        self.devices = devices
    }

    /// A device or controller of the machine.
    public struct Device: Sendable {
        let arguments: [String]

        /// Arguments of QEMU's command line.
        public static func qemu(_ arguments: String...) -> Device { Device(arguments: arguments) }

        /// The controller that usbvfiod serves at a socket.
        public static func usbvfiod(_ socket: String) -> Device {
            .qemu(
                "-device",
                #"{"driver":"vfio-user-pci","socket":{"path":"\#(socket)","type":"unix"}}"#)
        }

        /// QEMU's own xHCI controller.
        public static let controller = Device.qemu("-device", "qemu-xhci,id=usb")

        /// A USB stick with an image at QEMU's own controller.
        public static func stick(_ image: DiskImage) -> Device {
            .qemu(
                "-drive", "if=none,id=image,format=raw,file=\(image.path)",
                "-device", "usb-storage,bus=usb.0,id=stick,drive=image")
        }

        /// A keyboard at QEMU's own controller.
        public static let keyboard = Device.qemu("-device", "usb-kbd,bus=usb.0,id=keyboard")
    }

    /// The host of a machine: this host or another guest, and the paths there.
    struct Site {
        let qemu: String
        let accelerator: String
        let tree: String
        /// The folder of sockets and logs.
        let folder: String
        /// Kernel messages up to this level go to the console. Each character costs an inner guest
        /// two VM exits.
        let logLevel: Int
    }

    func arguments(at site: Site) -> [String] {
        let boot = "\(site.tree)/boot/\(kernel.rawValue)"
        var arguments = [
            site.qemu, "-accel", site.accelerator,
            "-cpu", site.accelerator == "kvm" ? "host" : "max",
            "-smp", "\(processors)", "-nodefaults", "-display", "none",
            "-kernel", "\(boot)/vmlinuz", "-initrd", "\(boot)/initrd",
            // The kernel's check of its timer fails on a busy host.
            "-append", "console=ttyS0 no_timer_check loglevel=\(site.logLevel)",
            "-serial", "file:\(site.folder)/console.log",
            "-qmp", "unix:\(site.folder)/qmp,server=on,wait=off",
            "-device", "virtio-rng-pci",
            "-fsdev", "local,id=tree,path=\(site.tree),security_model=none,readonly=on",
            "-device", "virtio-9p-pci,fsdev=tree,mount_tag=tree",
            "-device", "virtio-serial-pci",
        ]
        for port in ["agent"] + ports {
            // QEMU waits for the test to connect, or the guest's first output would be lost.
            arguments += [
                "-chardev", "socket,id=\(port),path=\(site.folder)/\(port),server=on,wait=on",
                "-device", "virtserialport,chardev=\(port),name=\(port)",
            ]
        }
        for (name, path) in folders.sorted(by: { $0.key < $1.key }) {
            arguments += [
                "-fsdev", "local,id=\(name),path=\(path),security_model=none",
                "-device", "virtio-9p-pci,fsdev=\(name),mount_tag=\(name)",
            ]
        }
        if sharesMemory {
            arguments += [
                "-object", "memory-backend-memfd,id=ram,size=\(memory)M,share=on",
                "-machine", "q35,memory-backend=ram",
            ]
        } else {
            arguments += ["-m", "\(memory)", "-machine", "q35"]
        }
        return arguments + devices.flatMap(\.arguments)
    }
}
