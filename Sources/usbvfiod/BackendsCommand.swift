// SPDX-License-Identifier: Apache-2.0

internal import ArgumentParser
internal import BackendKit

/// `usbvfiod backends`: prints the kinds of devices with their parameters and operations, as the
/// backends declare them.
struct BackendsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backends",
        abstract: "List the kinds of device there are, with their parameters.")

    @Flag(help: "As JSON, for management tools.")
    var json = false

    func run() throws { print(json ? try Self.json(.all) : Self.text(.all)) }

    // MARK: - For people

    static func text(_ catalog: BackendCatalog) -> String {
        catalog.backends.map { backend in
            let parameters = backend.parameters.map { [word($0), $0.summary] }
            let operations = BackendCatalog.operations(of: backend).map { operation in
                [usage(operation), operation.summary]
            }
            var lines = ["\(backend.scheme): \(backend.summary)"]
            lines += TextTable(parameters).lines.map { "    \($0)" }
            lines.append("    for example: --device \(backend.example)")
            lines += backend.bareNames.map { "    or: --device \($0.form)" }
            lines += TextTable(operations).lines.map { "    \($0)" }
            lines += BackendCatalog.operations(of: backend).filter { !$0.example.isEmpty }.map {
                "    for example: usbvfiod \($0.name) \(backend.scheme)-1 \($0.example)"
            }
            return lines.joined(separator: "\n")
        }.joined(separator: "\n\n")
    }

    /// `file=PATH`, or `[readonly]` for a parameter that may be absent.
    private static func word(_ parameter: Parameter) -> String {
        let word = parameter.value.map { "\(parameter.name)=\($0)" } ?? parameter.name
        return parameter.isRequired ? word : "[\(word)]"
    }

    /// `usbvfiod insert <id> <medium> [--force]`.
    private static func usage(_ operation: BackendOperation) -> String {
        let words = operation.arguments.map { argument in
            if argument.kind == .flag { return "[--\(argument.name)]" }
            return argument.isRequired
                ? "<\(argument.label)>" : "[--\(argument.name) <\(argument.label)>]"
        }
        return (["usbvfiod", operation.name, "<id>"] + words).joined(separator: " ")
    }

    // MARK: - For programs

    static func json(_ catalog: BackendCatalog) throws -> String {
        try usbvfiod.json(["backends": catalog.backends.map { BackendDescription($0) }])
    }
}

/// A backend in the JSON of `usbvfiod backends --json`.
private struct BackendDescription: Encodable {
    let scheme: String
    let summary: String
    let example: String
    let parameters: [ParameterDescription]
    let bareNames: [String]
    let operations: [OperationDescription]

    init(_ backend: any DeviceBackend.Type) {
        scheme = backend.scheme
        summary = backend.summary
        example = backend.example
        parameters = backend.parameters.map { ParameterDescription(parameter: $0) }
        bareNames = backend.bareNames.map(\.form)
        operations = BackendCatalog.operations(of: backend).map { OperationDescription($0) }
    }
}

private struct ParameterDescription: Encodable {
    let parameter: Parameter

    private enum CodingKeys: String, CodingKey {
        case name, value, required, summary
    }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(parameter.name, forKey: .name)
        // A flag has `null`, so that every parameter has the same keys.
        try container.encode(parameter.value, forKey: .value)
        try container.encode(parameter.isRequired, forKey: .required)
        try container.encode(parameter.summary, forKey: .summary)
    }
}

private struct OperationDescription: Encodable {
    let name: String
    let summary: String
    let example: String
    let arguments: [ArgumentDescription]

    init(_ operation: BackendOperation) {
        name = operation.name
        summary = operation.summary
        example = operation.example
        arguments = operation.arguments.map { ArgumentDescription($0) }
    }
}

/// An argument of an operation, with the bounds that its type has.
private struct ArgumentDescription: Encodable {
    let name: String
    let required: Bool
    let summary: String
    /// Whether a descriptor may come with the argument.
    let descriptor: Bool
    let type: String
    var minimum: Int?
    var maximum: Int?
    var choices: [String]?

    init(_ argument: BackendOperation.Argument) {
        name = argument.name
        required = argument.isRequired
        summary = argument.summary
        descriptor = argument.kind.takesDescriptor
        switch argument.kind {
        case .text: type = "text"
        case .path: type = "path"
        case .integer(let range):
            type = "integer"
            minimum = range.lowerBound
            maximum = range.upperBound
        case .flag: type = "flag"
        case .choice(let words):
            type = "choice"
            choices = words
        case .specification: type = "specification"
        }
    }
}
