// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import BackendKit
import ExampleBackend
import Foundation
import Service
import TestKit
import Testing
import USB

@testable import usbvfiod

/// The subcommands made from the operations of backends.
struct OperationCommandTests {
    private enum DiceSource: CatalogSource {
        static let catalog = BackendCatalog(DiceBackend.self, RadioBackend.self)
    }

    private struct Root: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "usbvfiod", subcommands: DiceSource.operationCommands)
    }

    /// The JSON request made from a command line.
    private func request(_ words: String...) throws -> String {
        let command = try Root.parseAsRoot(words)
        let message = try #require(command as? any ControlCommand).message()
        return String(decoding: try message.line.dropLast(), as: UTF8.self)
    }

    /// The error message for a command line.
    private func refusal(_ words: String...) -> String {
        do {
            _ = try Root.parseAsRoot(words)
            return "accepted"
        } catch {
            return Root.fullMessage(for: error, columns: 100)
        }
    }

    @Test func `the operation of the guide's backend is a subcommand`() throws {
        #expect(
            try request("load", "dice-1", "6") == #"{"id":"dice-1","number":6,"request":"load"}"#)
        #expect(
            try request("load", "dice-1", "0x10", "--json", "--timeout", "5")
                == #"{"id":"dice-1","number":16,"request":"load"}"#)
    }

    @Test func `the help of an operation is made from its declaration`() {
        let help = Root.helpMessage(for: DiceSource.operationCommands[0], columns: 100)
        for line in [
            "OVERVIEW: Load a die of a running server, so that it always shows one number.",
            "USAGE: usbvfiod load [--control-path <path>] [--json] [--timeout <seconds>] <id> <number>",
            "  <id>                    The die; `usbvfiod list` shows the ids.",
            "  <number>                The number; 0 makes the die fair again.",
        ] {
            #expect(help.contains(line), "\(help)")
        }
    }

    @Test func `errors in the arguments of an operation are explained`() {
        #expect(refusal("load").contains("Missing expected argument '<id>'"))
        #expect(refusal("load", "dice-1").contains("Missing expected argument '<number>'"))
        #expect(refusal("load", "dice-1", "256").contains("must be a number from 0 to 255"))
        #expect(refusal("load", "dice-1", "six").contains("must be a number from 0 to 255"))
        #expect(refusal("load", "dice-1", "6", "7").contains("Unexpected argument '7'"))
        #expect(refusal("load", "dice-1", "6", "--loud").contains("Unknown option '--loud'"))
    }

    @Test func `the confirmation of an operation names the value`() throws {
        let command = try Root.parseAsRoot(["load", "dice-1", "6"])
        let text = try #require(command as? any ControlCommand).text(ControlAnswer())
        #expect(text == "dice-1: loaded with 6")
    }

    @Test func `optional arguments are options, and flags are flags`() throws {
        #expect(
            try request("tune", "radio-1", "--band", "fm", "--mute", "--channel=-1")
                == #"{"band":"fm","channel":-1,"id":"radio-1","mute":true,"request":"tune"}"#)
        #expect(try request("tune", "radio-1") == #"{"id":"radio-1","request":"tune"}"#)
        #expect(refusal("tune", "radio-1", "--band", "lw").contains("one of: am, fm"))
        #expect(refusal("tune", "radio-1", "--band").contains("Missing value for '--band <band>'"))
    }

    @Test func `the client opens a path for an operation that declares so`() throws {
        let folder = try TemporaryFolder()
        let path = folder.file("a")
        func message() throws -> ControlMessage {
            let command = try Root.parseAsRoot(["tune", "radio-1", "--file", path])
            return try #require(command as? any ControlCommand).message()
        }
        let error = #expect(throws: BackendError.self) { try message() }
        #expect(error?.reason.contains("cannot open '\(path)'") == true)
        try Data().write(to: URL(filePath: path))
        #expect(try message().descriptor != nil)
        #expect(try message()["file"] == .text(path))
    }
}

/// A backend that only declares an operation with every type of argument.
private final class RadioBackend: OperableBackend {
    static let scheme = "radio"
    static let summary = "for tests"
    static let parameters: [Parameter] = []
    static let example = "radio"
    static let operations = [
        BackendOperation(
            "tune", summary: "Tune a radio.",
            arguments: [
                BackendOperation.Argument(
                    "channel", .integer(-1...99), isRequired: false, summary: "A number."),
                BackendOperation.Argument(
                    "band", .choice(["am", "fm"]), isRequired: false, summary: "A word."),
                BackendOperation.Argument("mute", .flag, summary: "A flag."),
                BackendOperation.Argument(
                    "file", .path(opening: .read), isRequired: false, summary: "A path."),
            ])
    ]

    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {}
    func start(on bus: any USBBus) throws(BackendError) {}
    func stop() {}
    func execute(_ call: OperationCall, completion: @escaping (BackendError?) -> Void) {}
}
