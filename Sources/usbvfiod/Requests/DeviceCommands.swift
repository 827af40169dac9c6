// SPDX-License-Identifier: Apache-2.0

internal import ArgumentParser
internal import BackendKit
internal import Service

/// `usbvfiod list`: prints the devices of a running server.
struct ListCommand: ControlCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "Show the devices of a running server.")

    @OptionGroup var control: ControlOptions
    @OptionGroup var request: RequestOptions

    func message() -> ControlMessage { ControlMessage("list") }

    func text(_ answer: ControlAnswer) -> String {
        let client = answer.hasClient == true ? "connected" : "not connected"
        let devices = answer.devices ?? []
        guard !devices.isEmpty else { return "virtual machine: \(client)\nno devices" }
        let header = ["ID", "STATE", "PORT", "SPEED", "DEVICE"]
        let rows = devices.map { device in
            [
                device.id, device.state.rawValue, device.port.map { String($0) } ?? "-",
                device.speed ?? "-", device.summary ?? device.specification,
            ].map { printable($0) }
        }
        let table = TextTable([header] + rows)
        return (["virtual machine: \(client)"] + table.lines).joined(separator: "\n")
    }
}

/// `usbvfiod attach SPEC`: opens a device and has a running server attach it.
struct AttachCommand: ControlCommand {
    static let configuration = CommandConfiguration(
        commandName: "attach",
        abstract: "Plug a device into a running server.",
        discussion: """
            This command opens the device or the image itself and hands it over open, so its own \
            rights count and not those of the server.
            """)

    @OptionGroup var control: ControlOptions
    @OptionGroup var request: RequestOptions

    @Argument(help: "The device, as for --device; see `usbvfiod backends`.")
    var specification: String

    @Option(help: "The id of the device; by default the kind and a number, such as storage-1.")
    var id: String?

    func message() throws -> ControlMessage {
        var message = ControlMessage("attach")
        try message.pass(specification, as: "spec", from: .all)
        if let id { message["id"] = .text(id) }
        return message
    }

    func text(_ answer: ControlAnswer) -> String {
        guard let device = answer.device else { return "attached" }
        let port = device.port.map { " at port \($0)" } ?? ", waiting for its device"
        return printable("\(device.id): \(device.summary ?? device.specification)\(port)")
    }
}

/// `usbvfiod detach ID`: has a running server detach a device.
struct DetachCommand: ControlCommand {
    static let configuration = CommandConfiguration(
        commandName: "detach",
        abstract: "Unplug a device from a running server.",
        discussion: "When this returns, all that was written to the device is on the disk.")

    @OptionGroup var control: ControlOptions
    @OptionGroup var request: RequestOptions

    @Argument(help: "The device; `usbvfiod list` shows the ids.")
    var id: String

    func message() -> ControlMessage { ControlMessage("detach", ["id": .text(id)]) }

    func text(_ answer: ControlAnswer) -> String { printable("\(id): detached") }
}
