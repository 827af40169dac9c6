// SPDX-License-Identifier: Apache-2.0

internal import ArgumentParser
internal import BackendKit

/// The arguments and options of an operation's subcommand, made from the operation's declaration.
///
/// ArgumentParser finds the properties of a command in its mirror and decodes each by its label. So
/// the mirror of this type shows one property wrapper for each declared argument, as if they were
/// written here.
struct OperationOptions<Source: CatalogSource, Index: OperationIndex>: ParsableArguments {
    /// The values that were given. A flag that is not set is absent.
    private(set) var values: [String: ArgumentValue] = [:]

    private static var declared: [BackendOperation.Argument] {
        OperationCommand<Source, Index>.operation.arguments
    }

    private struct Key: CodingKey {
        let stringValue: String
        var intValue: Int? { nil }
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }

    init() {}

    init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: Key.self)
        for argument in Self.declared {
            let key = Key(stringValue: argument.name)
            if argument.kind == .flag {
                let isSet = try container.decode(Flag<Bool>.self, forKey: key).wrappedValue
                if isSet { values[argument.name] = .flag(true) }
            } else if argument.isRequired {
                values[argument.name] =
                    try container.decode(Argument<ArgumentValue>.self, forKey: key).wrappedValue
            } else {
                values[argument.name] =
                    try container.decode(Option<ArgumentValue?>.self, forKey: key).wrappedValue
            }
        }
    }
}

extension OperationOptions: CustomReflectable {
    var customMirror: Mirror {
        Mirror(self, children: Self.declared.map { ($0.name, Self.property($0)) })
    }

    private static func property(_ argument: BackendOperation.Argument) -> Any {
        let help = ArgumentHelp(
            argument.summary, valueName: argument.label)
        let name = NameSpecification.customLong(argument.name)
        let parse: @Sendable (String) throws -> ArgumentValue = { word in
            do {
                return try argument.value(of: word)
            } catch let error as BackendError {
                throw ValidationError(error.reason)
            }
        }
        if argument.kind == .flag { return Flag(wrappedValue: false, name: name, help: help) }
        if argument.isRequired {
            return Argument<ArgumentValue>(
                help: help, completion: argument.kind.completion, transform: parse)
        }
        return Option<ArgumentValue?>(
            name: name, help: help, completion: argument.kind.completion, transform: parse)
    }
}

extension BackendOperation.Argument.Kind {
    fileprivate var completion: CompletionKind {
        switch self {
        case .path: .file()
        case .choice(let words): .list(words)
        default: .default
        }
    }
}
