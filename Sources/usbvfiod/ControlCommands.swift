// SPDX-License-Identifier: Apache-2.0

internal import ArgumentParser
internal import BackendKit
internal import Platform
internal import Service

/// Where server and requests meet.
struct ControlOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "The socket for requests to a running server, which makes it: list, attach, detach…",
            valueName: "path"))
    var controlPath: String?
}

/// What all requests to a running server have.
struct RequestOptions: ParsableArguments {
    @Flag(help: "Print the answer as it came, as JSON.")
    var json = false

    @Option(help: ArgumentHelp("How long to wait for the answer.", valueName: "seconds"))
    var timeout = 60

    func validate() throws {
        guard (1...86_400).contains(timeout) else {
            throw ValidationError("--timeout is a number of seconds from 1 to 86400.")
        }
    }
}

/// A subcommand that sends one request and shows the answer.
protocol ControlCommand: ParsableCommand {
    var control: ControlOptions { get }
    var request: RequestOptions { get }

    /// The fields of the request, and the descriptor that goes with it.
    func fields() throws -> ControlClient.Message

    /// What a person wants to read.
    func text(_ answer: ControlAnswer) -> String
}

extension ControlCommand {
    func run() throws {
        guard let path = control.controlPath, !path.isEmpty else {
            throw ValidationError(
                "where does the server listen for requests? Give --control-path PATH, "
                    + "the same as to the server.")
        }
        let limit = Duration.seconds(request.timeout)
        let client = try ControlClient(path: path, within: limit)
        let (line, answer) = try client.ask(try fields(), within: limit)
        if request.json {
            print(line)
            if !answer.isGood { throw ExitCode.failure }
            return
        }
        guard answer.isGood else {
            throw Failure(description: printable(answer.error ?? "the server refused"))
        }
        print(text(answer))
    }
}

/// `usbvfiod list`.
struct ListDevices: ControlCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "Show the devices of a running server.")

    @OptionGroup var control: ControlOptions
    @OptionGroup var request: RequestOptions

    func fields() -> ControlClient.Message { .init(["request": .text("list")]) }

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
        return "virtual machine: \(client)\n" + table([header] + rows)
    }
}

/// `usbvfiod attach SPEC`.
struct AttachDevice: ControlCommand {
    static let configuration = CommandConfiguration(
        commandName: "attach",
        abstract: "Plug a device into a running server.",
        discussion: """
            This command opens the device or the image itself and hands it over open, so its own \
            rights count and not those of the server.
            """)

    @OptionGroup var control: ControlOptions
    @OptionGroup var request: RequestOptions

    @Argument(help: "The device, as behind --device; see `usbvfiod backends`.")
    var specification: String

    @Option(help: "What to call it; by default the kind and a number, such as storage-1.")
    var id: String?

    func fields() throws -> ControlClient.Message {
        do {
            let (backend, parsed) = try BackendCatalog.all.resolve(specification)
            var message: ControlClient.Message
            if let opened = try backend.open(parsed) {
                message = .init(
                    ["request": .text("attach"), "spec": .text(opened.specification.text)],
                    try opened.descriptor.duplicate())
            } else {
                message = .init(["request": .text("attach"), "spec": .text(specification)])
            }
            if let id { message.fields["id"] = .text(id) }
            return message
        } catch let error as BackendError {
            throw Failure(description: error.reason)
        }
    }

    func text(_ answer: ControlAnswer) -> String {
        guard let device = answer.device else { return "attached" }
        let place = device.port.map { " at port \($0)" } ?? ", waiting for its device"
        return printable("\(device.id): \(device.summary ?? device.specification)\(place)")
    }
}

/// `usbvfiod detach ID`.
struct DetachDevice: ControlCommand {
    static let configuration = CommandConfiguration(
        commandName: "detach",
        abstract: "Unplug a device from a running server.",
        discussion: "When this returns, all that was written to the device is on the disk.")

    @OptionGroup var control: ControlOptions
    @OptionGroup var request: RequestOptions

    @Argument(help: "The device; `usbvfiod list` shows the ids.")
    var id: String

    func fields() -> ControlClient.Message {
        .init(["request": .text("detach"), "id": .text(id)])
    }

    func text(_ answer: ControlAnswer) -> String { printable("\(id): detached") }
}

/// `usbvfiod insert ID MEDIUM`.
struct InsertMedium: ControlCommand {
    static let configuration = CommandConfiguration(
        commandName: "insert",
        abstract: "Put another image into a stick of a running server.",
        discussion: """
            The guest sees a medium that has changed. What it wrote to the old one is on the disk \
            when this returns.
            """)

    @OptionGroup var control: ControlOptions
    @OptionGroup var request: RequestOptions

    @Argument(help: "The stick; `usbvfiod list` shows the ids.")
    var id: String

    @Argument(help: "The image, such as file=other.img or file=other.img,readonly.")
    var medium: String

    @Flag(
        help: """
            Although the guest has locked the medium, or the old one cannot be written: as if it were \
            pulled out.
            """)
    var force = false

    func fields() throws -> ControlClient.Message {
        do {
            let text = medium.hasPrefix("storage:") ? medium : "storage:\(medium)"
            let (backend, parsed) = try BackendCatalog.all.resolve(text)
            var message: ControlClient.Message
            if let opened = try backend.open(parsed) {
                message = .init(
                    ["spec": .text(opened.specification.text)], try opened.descriptor.duplicate())
            } else {
                message = .init(["spec": .text(text)])
            }
            message.fields["request"] = .text("insert")
            message.fields["id"] = .text(id)
            if force { message.fields["force"] = .flag(true) }
            return message
        } catch let error as BackendError {
            throw Failure(description: error.reason)
        }
    }

    func text(_ answer: ControlAnswer) -> String { printable("\(id): \(medium) is in") }
}

/// `usbvfiod eject ID`.
struct EjectMedium: ControlCommand {
    static let configuration = CommandConfiguration(
        commandName: "eject",
        abstract: "Take the image out of a stick of a running server.",
        discussion:
            "The stick stays plugged in. When this returns, the image can be used by others.")

    @OptionGroup var control: ControlOptions
    @OptionGroup var request: RequestOptions

    @Argument(help: "The stick; `usbvfiod list` shows the ids.")
    var id: String

    @Flag(
        help: """
            Although the guest has locked the medium, or the old one cannot be written: as if it were \
            pulled out.
            """)
    var force = false

    func fields() -> ControlClient.Message {
        var message = ControlClient.Message(["request": .text("eject"), "id": .text(id)])
        if force { message.fields["force"] = .flag(true) }
        return message
    }

    func text(_ answer: ControlAnswer) -> String { printable("\(id): ejected") }
}

/// `usbvfiod faults ID RULES`.
struct SetFaults: ControlCommand {
    static let configuration = CommandConfiguration(
        commandName: "faults",
        abstract: "Replace the fault rules of a test device of a running server.")

    @OptionGroup var control: ControlOptions
    @OptionGroup var request: RequestOptions

    @Argument(help: "The device; `usbvfiod list` shows the ids.")
    var id: String

    @Argument(help: "The new rules; an empty text ends all faults.")
    var rules: String

    func fields() -> ControlClient.Message {
        .init(["request": .text("faults"), "id": .text(id), "rules": .text(rules)])
    }

    func text(_ answer: ControlAnswer) -> String { printable("\(id): new rules") }
}

/// Columns as wide as their longest word.
private func table(_ rows: [[String]]) -> String {
    let widths = (rows.first ?? []).indices.map { column in
        rows.map { $0[column].count }.max() ?? 0
    }
    return rows.map { row in
        zip(row, widths).enumerated().map { place, cell in
            let isLast = place == row.count - 1
            let space = isLast ? 0 : cell.1 - cell.0.count + 2
            return cell.0 + String(repeating: " ", count: space)
        }.joined()
    }.joined(separator: "\n")
}

/// Without characters that a terminal takes for commands: names come from elsewhere.
private func printable(_ text: String) -> String {
    String(
        String.UnicodeScalarView(
            text.unicodeScalars.map { scalar in
                scalar.properties.generalCategory == .control ? "\u{fffd}" : scalar
            }))
}
