// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import FoundationEssentials

/// A request of docs/control-protocol.md: one JSON object in a line of its own.
///
/// Requests about devices in general are cases of their own. All others are the operations that the
/// backends declare; the fields of both are checked against declared arguments.
enum ControlSocketRequest {
    case list
    case attach(specification: String, id: String?)
    case detach(id: String)
    case execute(BackendOperation, id: String, arguments: [String: ArgumentValue])

    private typealias Argument = BackendOperation.Argument

    private static let requestName = "request"
    private static let id = Argument("id", .text(), summary: "The device.")
    private static let optionalID = Argument(
        "id", .text(), isRequired: false, summary: "The id of the new device.")
    private static let specification = Argument(
        "spec", .text(), summary: "The specification of the new device.")

    /// Whether a descriptor may come with the request.
    var takesDescriptor: Bool {
        switch self {
        case .list, .detach: false
        case .attach: true
        case .execute(let operation, _, _): operation.takesDescriptor
        }
    }

    /// Parses a line, without its line feed.
    ///
    /// - Parameter operations: the operations of the catalog.
    /// - Throws: the error for the answer, if the line is not a valid request.
    init(line: [UInt8], operations: [BackendOperation]) throws(ControlError) {
        var fields: [String: ArgumentValue]
        do {
            fields = try JSONDecoder().decode([String: ArgumentValue].self, from: Data(line))
        } catch {
            throw ControlError(
                .badRequest,
                #"the line is not a JSON object; one is, for example: {"request":"list"}"#)
        }
        let name: String
        switch fields.removeValue(forKey: Self.requestName) {
        case .text(let text): name = text
        case nil: throw ControlError(.badRequest, "the request lacks '\(Self.requestName)'")
        default: throw ControlError(.badRequest, "'\(Self.requestName)' must be a string")
        }
        switch name {
        case "list":
            _ = try Self.check(fields, name, [])
            self = .list
        case "attach":
            let values = try Self.check(fields, name, [Self.specification, Self.optionalID])
            self = .attach(
                specification: Self.text("spec", values) ?? "", id: Self.text("id", values))
        case "detach":
            let values = try Self.check(fields, name, [Self.id])
            self = .detach(id: Self.text("id", values) ?? "")
        default:
            guard let operation = operations.first(where: { $0.name == name }) else {
                let names = ["list", "attach", "detach"] + operations.map(\.name)
                throw ControlError(
                    .unknownRequest,
                    "there is no request '\(name.prefix(80))'; there are: "
                        + names.joined(separator: ", "))
            }
            var values = try Self.check(fields, name, [Self.id] + operation.arguments)
            let id = Self.text("id", values) ?? ""
            values["id"] = nil
            self = .execute(operation, id: id, arguments: values)
        }
    }

    private static func check(
        _ fields: [String: ArgumentValue], _ name: String, _ arguments: [Argument]
    ) throws(ControlError) -> [String: ArgumentValue] {
        do throws(BackendError) {
            return try arguments.checked(fields, of: name)
        } catch {
            throw ControlError(.badRequest, error.reason)
        }
    }

    private static func text(_ name: String, _ values: [String: ArgumentValue]) -> String? {
        guard case .text(let text)? = values[name] else { return nil }
        return text
    }
}
