// SPDX-License-Identifier: Apache-2.0

internal import ArgumentParser
internal import BackendKit
internal import HostUSB
internal import Logging
internal import Loopback
internal import MassStorage
internal import Platform
internal import Service
internal import SystemPackage

extension BackendCatalog {
    /// The backends of this program. A new backend is one more name here.
    static let all = BackendCatalog(
        StorageBackend.self, HostBackend.self, LoopbackBackend.self)
}

/// ``BackendCatalog/all`` as a type.
enum AllBackends: CatalogSource {
    static var catalog: BackendCatalog { .all }
}

/// The program without a subcommand: checks the arguments, opens the devices and serves them.
@main
struct Usbvfiod: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "usbvfiod",
        abstract:
            "Gives a virtual machine a USB controller, with devices of the host and image files.",
        usage: """
            usbvfiod --socket-path PATH [--device SPEC]... [--control-path PATH] [-v...]
            usbvfiod \(requests) … --control-path PATH [--json]
            usbvfiod backends [--json]
            usbvfiod devices [--json]
            """,
        discussion: """
            It speaks vfio-user on a UNIX socket and is, to the guest, a PCI xHCI controller. Start it \
            first, then the virtual machine; the machine may come and go while devices stay.

            EXAMPLES
              A stick made of an image file, for Cloud Hypervisor:
                usbvfiod --socket-path /tmp/usb.sock --device storage:file=stick.img
                cloud-hypervisor … --memory size=1G,shared=on \\
                    --user-device socket=/tmp/usb.sock

              A device of the host, and the image read-only:
                usbvfiod devices
                usbvfiod --socket-path /tmp/usb.sock --device host:port=1-2 \\
                    --device storage:file=stick.img,readonly

              Devices that come, change and go while the machine runs:
                usbvfiod --socket-path /tmp/usb.sock --control-path /tmp/usb.control
                usbvfiod attach storage:file=stick.img --id stick --control-path /tmp/usb.control
                usbvfiod insert stick file=other.img --control-path /tmp/usb.control
                usbvfiod list --control-path /tmp/usb.control
                usbvfiod detach stick --control-path /tmp/usb.control

              What devices there are, and their parameters:
                usbvfiod backends
            """,
        version: version,
        subcommands: [
            BackendsCommand.self, DevicesCommand.self, ListCommand.self, AttachCommand.self,
            DetachCommand.self,
        ] + AllBackends.operationCommands)

    static let version = "0.1.0"

    private static var requests: String {
        (["list", "attach", "detach"] + BackendCatalog.all.operations.map(\.name))
            .joined(separator: "|")
    }

    @Option(
        help: ArgumentHelp(
            "The socket to listen on. A socket file that an ended server has left is replaced.",
            valueName: "path"))
    var socketPath: String?

    @Option(
        name: .customLong("fd"),
        help: ArgumentHelp(
            "Use this open socket instead: a listening one, or one that a client is connected to.",
            valueName: "number"))
    var descriptor: CInt?

    @Option(
        name: .customLong("device"),
        help: ArgumentHelp(deviceHelp, valueName: "spec"))
    var devices: [String] = []

    private static var deviceHelp: String {
        let forms = ["BACKEND:KEY=VALUE,…"] + BackendCatalog.all.bareNames.map(\.form)
        return "Plug in a device: \(forms.joined(separator: " or ")). May be repeated."
    }

    @OptionGroup
    var control: ControlOptions

    @Flag(
        name: [.short, .customLong("verbose")],
        help: "Log more: -v what the guest does, -vv each message.")
    var verbosity: Int

    @Flag(help: "Print the type and features of this program as JSON, and exit.")
    var printCapabilities = false

    func run() throws {
        if printCapabilities { return print(try json(ProgramCapabilities())) }
        let address = try ListenAddress(path: socketPath, descriptor: descriptor)
        if let path = control.controlPath {
            guard !path.isEmpty else { throw ValidationError("--control-path needs a path.") }
            guard path != socketPath else {
                throw ValidationError("--control-path and --socket-path need different paths.")
            }
        }
        for device in devices {
            do { _ = try BackendCatalog.all.resolve(device) } catch {
                throw ValidationError(error.reason)
            }
        }
        let level: Logger.Level = verbosity == 0 ? .info : verbosity == 1 ? .debug : .trace
        LoggingSystem.bootstrap { label in ConsoleLog(label: label, level: level) }
        do {
            try serve(address, logger: Logger(label: "usbvfiod"))
        } catch let error as ControlError {
            throw Failure(description: error.reason)
        } catch let error as Errno {
            throw Failure(
                description:
                    "cannot wait for clients and signals: \(error)\(remedyForEvents(error))")
        }
    }

    private func serve(_ address: ListenAddress, logger: Logger) throws {
        ignoreWriteSignals()
        let loop = try EpollLoop()
        let server = Server(loop: loop, logger: logger)
        let signals = try SignalWatch(SignalWatch.termination, on: loop) { signal in
            logger.notice("signal \(signal): ending")
            server.stop()
        }
        let table = DeviceTable(catalog: .all, server: server, loop: loop, logger: logger)
        // The devices are opened before a client can connect, so that an error ends the program
        // early.
        for device in devices { try table.open(device) }
        let socket = try address.open()
        let controlSocket = try control.controlPath.map { path in
            try ListenAddress.listen(at: absolute(path), permissions: .ownerReadWrite)
        }
        defer { table.stop() }
        try table.attachOpened()
        let controlServer = try controlSocket.map { listener in
            try ControlServer(
                listener: listener, server: server, devices: table, loop: loop, logger: logger)
        }
        switch consume socket {
        case .connected(let client):
            try server.serve(client)
            logger.notice("serving one client; \(deviceCount)")
        case .listening(let listener):
            try server.listen(on: listener)
            logger.notice(
                "listening at \(listener.path ?? "a socket without a name"); \(deviceCount)")
            if let path = listener.path { try ClientHints(socketPath: path).print() }
        }
        if let path = controlSocket?.path { logger.notice("control requests at \(path)") }
        try withExtendedLifetime((signals, controlServer)) { try server.run() }
        guard table.stop() else {
            throw Failure(description: "ended; some data that guests have written is lost")
        }
        logger.notice("ended")
    }

    private var deviceCount: String {
        devices.count == 1 ? "1 device" : "\(devices.count) devices"
    }
}

/// The JSON of `--print-capabilities`, in the conventions for backend programs.
private struct ProgramCapabilities: Encodable {
    let type = "usb"
    let features = ["xhci", "reconnect", "socket-activation", "control"]
}

/// An error that is not a mistake on the command line: one line on standard error, and exit code 1.
struct Failure: Error, CustomStringConvertible {
    let description: String
}
