// SPDX-License-Identifier: Apache-2.0

internal import ArgumentParser
internal import BackendKit
internal import Service

/// The option that names the control socket, for the server and for its clients.
struct ControlOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "The control socket, which the server creates: for list, attach, detach…",
            valueName: "path"))
    var controlPath: String?
}

/// The options of all subcommands that send a request.
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

/// A subcommand that sends one request to a running server and prints the answer.
protocol ControlCommand: ParsableCommand {
    var control: ControlOptions { get }
    var request: RequestOptions { get }

    /// The request, and the descriptor that goes with it.
    ///
    /// - Throws: if the device or file cannot be opened.
    func message() throws -> ControlMessage

    /// The text for a person after success.
    func text(_ answer: ControlAnswer) -> String
}

extension ControlCommand {
    func run() throws {
        guard let path = control.controlPath, !path.isEmpty else {
            throw ValidationError(
                "no control socket: give --control-path PATH, the same as to the server.")
        }
        let limit = Duration.seconds(request.timeout)
        let client = try ControlClient(path: path, within: limit)
        let message: ControlMessage
        do {
            message = try self.message()
        } catch let error as BackendError {
            throw Failure(description: error.reason)
        }
        let (line, answer) = try client.send(message, within: limit)
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
