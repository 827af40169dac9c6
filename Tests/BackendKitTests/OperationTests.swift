// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Testing
import USB

/// The arguments of operations: the values that are accepted, and the errors of the others.
struct OperationTests {
    private typealias Argument = BackendOperation.Argument

    private let operation = BackendOperation(
        "tune", summary: "Tunes.",
        arguments: [
            Argument("channel", .integer(-1...99), summary: "A number."),
            Argument("band", .choice(["am", "fm"]), isRequired: false, summary: "A word."),
            Argument("note", .text(maximumLength: 8), isRequired: false, summary: "A text."),
            Argument("mute", .flag, summary: "A flag."),
            Argument("file", .path(opening: .read), isRequired: false, summary: "A path."),
            Argument("spec", .specification, isRequired: false, summary: "A device."),
        ])

    private func reason(_ fields: [String: ArgumentValue]) -> String? {
        do throws(BackendError) {
            _ = try OperationCall(operation, fields, for: Radio.self)
            return nil
        } catch {
            return error.reason
        }
    }

    @Test func `a call has the values that were given`() throws {
        let call = try OperationCall(
            operation,
            [
                "channel": .integer(7), "band": .text("fm"), "mute": .flag(true),
                "spec": .text("file=a,,b"),
            ], for: Radio.self)
        #expect(call.name == "tune")
        #expect(call.integer("channel") == 7)
        #expect(call.text("band") == "fm")
        #expect(call.flag("mute"))
        #expect(call.text("note") == nil)
        #expect(call.specification("spec")?.text == "radio:file=a,,b")
        #expect(call.descriptor == nil)
    }

    @Test(
        "numbers, words, texts and paths have bounds",
        arguments: [
            ("channel", ArgumentValue.integer(-1), nil), ("channel", .integer(99), nil),
            ("channel", .integer(-2), "'channel' must be a number from -1 to 99"),
            ("channel", .integer(100), "'channel' must be a number from -1 to 99"),
            ("channel", .text("7"), "'channel' must be a number from -1 to 99"),
            ("channel", .other, "'channel' must be a number from -1 to 99"),
            ("band", .text("am"), nil), ("band", .text(""), "'band' must be one of: am, fm"),
            ("band", .flag(true), "'band' must be one of: am, fm"),
            ("note", .text(""), nil), ("note", .text("12345678"), nil),
            ("note", .text("123456789"), "'note' must be a string of at most 8 bytes"),
            ("note", .text("ääääa"), "'note' must be a string of at most 8 bytes"),
            ("note", .integer(1), "'note' must be a string of at most 8 bytes"),
            ("mute", .flag(false), nil), ("mute", .integer(1), "'mute' must be true or false"),
            ("mute", .text("on"), "'mute' must be true or false"),
            ("file", .text("/"), nil), ("file", .text(String(repeating: "x", count: 4095)), nil),
            ("file", .text(""), "'file' must be a path of 1 to 4095 bytes"),
            (
                "file", .text(String(repeating: "x", count: 4096)),
                "'file' must be a path of 1 to 4095 bytes"
            ),
            ("file", .text("a\0b"), "'file' must be a path of 1 to 4095 bytes"),
            ("spec", .text("readonly"), nil), ("spec", .text("radio:readonly"), nil),
            ("spec", .flag(true), "'spec' must be a string"),
            ("spec", .text("a=1,a=2"), "'radio:a=1,a=2' gives 'a' twice"),
            ("loudness", .integer(1), "'tune' has no field 'loudness'"),
        ])
    func bounds(name: String, value: ArgumentValue, error: String?) {
        var fields: [String: ArgumentValue] = ["channel": .integer(1)]
        fields[name] = value
        #expect(reason(fields) == error)
    }

    @Test func `a required argument must be present`() {
        #expect(reason([:]) == "the request lacks 'channel'")
    }

    @Test(
        "words of the command line become values of the declared type",
        arguments: [
            ("12", ArgumentValue.integer(12)), ("-1", .integer(-1)), ("0x1f", .integer(31)),
        ])
    func words(word: String, value: ArgumentValue) throws {
        #expect(try operation.arguments[0].value(of: word) == value)
    }

    @Test(
        "words that are not a number in the range are refused",
        arguments: ["", "0x", "7 ", "1.0", "99999999999999999999"])
    func wrongWords(word: String) {
        let error = #expect(throws: BackendError.self) {
            try operation.arguments[0].value(of: word)
        }
        #expect(error?.reason == "'channel' must be a number from -1 to 99")
    }

    @Test func `the error for a device without the operation says so`() {
        #expect(
            operation.unsupportedError(for: Radio.self).reason
                == "a device of the kind 'radio' has no operation 'tune'")
    }

    @Test func `an operation takes a descriptor if one of its arguments does`() {
        #expect(operation.takesDescriptor)
        #expect(
            !BackendOperation(
                "store", summary: "", arguments: [Argument("file", .path(), summary: "")]
            ).takesDescriptor)
    }

    @Test func `a declaration with reserved names or a conflict traps`() async {
        await #expect(processExitsWith: .failure) {
            _ = BackendCatalog(ReservedName.self)
        }
        await #expect(processExitsWith: .failure) {
            _ = BackendCatalog(ReservedArgument.self)
        }
        await #expect(processExitsWith: .failure) {
            _ = BackendCatalog(Radio.self, OtherRadio.self)
        }
    }
}

/// A backend that only declares operations.
private protocol DeclarationOnly: OperableBackend {}

extension DeclarationOnly {
    static var summary: String { "" }
    static var parameters: [Parameter] { [] }
    static var example: String { "" }
    func start(on bus: any USBBus) throws(BackendError) {}
    func stop() {}
    func execute(_ call: OperationCall, completion: @escaping (BackendError?) -> Void) {}
}

private final class Radio: DeclarationOnly {
    static let scheme = "radio"
    static let operations = [BackendOperation("tune", summary: "")]
    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {}
}

private final class OtherRadio: DeclarationOnly {
    static let scheme = "other-radio"
    static let operations = [
        BackendOperation(
            "tune", summary: "",
            arguments: [BackendOperation.Argument("channel", .integer(0...1), summary: "")])
    ]
    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {}
}

private final class ReservedName: DeclarationOnly {
    static let scheme = "reserved-name"
    static let operations = [BackendOperation("attach", summary: "")]
    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {}
}

private final class ReservedArgument: DeclarationOnly {
    static let scheme = "reserved-argument"
    static let operations = [
        BackendOperation(
            "tune", summary: "", arguments: [BackendOperation.Argument("id", .flag, summary: "")])
    ]
    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {}
}
