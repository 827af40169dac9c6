// SPDX-License-Identifier: Apache-2.0

internal import ArgumentParser
internal import BackendKit

/// `usbvfiod backends`: what kinds of device there are, made from what the backends say themselves.
struct BackendsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "backends",
        abstract: "List the kinds of device there are, with their parameters.")

    @Flag(help: "As JSON, for management tools.")
    var json = false

    func run() { print(json ? Self.json(.all) : Self.text(.all)) }

    static func text(_ catalog: BackendCatalog) -> String {
        catalog.backends.map { backend in
            let names = backend.parameters.map { words($0) }
            let width = names.map(\.count).max() ?? 0
            let lines = zip(names, backend.parameters).map { name, parameter in
                let space = String(repeating: " ", count: width - name.count + 2)
                return "    \(name)\(space)\(parameter.summary)"
            }
            return """
                \(backend.scheme): \(backend.summary)
                \(lines.joined(separator: "\n"))
                    for example: --device \(backend.example)
                """
        }.joined(separator: "\n\n")
    }

    static func json(_ catalog: BackendCatalog) -> String {
        let backends = catalog.backends.map { backend in
            let parameters = backend.parameters.map { parameter in
                let value = parameter.value.map { quoted($0) } ?? "null"
                return """
                          {"name": \(quoted(parameter.name)), "value": \(value), \
                    "required": \(parameter.isRequired), "summary": \(quoted(parameter.summary))}
                    """
            }
            return """
                    {
                      "scheme": \(quoted(backend.scheme)),
                      "summary": \(quoted(backend.summary)),
                      "example": \(quoted(backend.example)),
                      "parameters": [
                \(parameters.joined(separator: ",\n"))
                      ]
                    }
                """
        }
        return """
            {
              "backends": [
            \(backends.joined(separator: ",\n"))
              ]
            }
            """
    }

    /// `file=PATH`, or `[readonly]` for what may be left out.
    private static func words(_ parameter: Parameter) -> String {
        let word = parameter.value.map { "\(parameter.name)=\($0)" } ?? parameter.name
        return parameter.isRequired ? word : "[\(word)]"
    }

    private static func quoted(_ text: String) -> String { "\"\(ClientHints.json(text))\"" }
}
