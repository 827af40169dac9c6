// SPDX-License-Identifier: Apache-2.0

internal import ArgumentParser
internal import BackendKit
internal import Platform
internal import Service
internal import SystemPackage

/// A catalog as a type, because ArgumentParser knows commands by their types.
protocol CatalogSource {
    static var catalog: BackendCatalog { get }
}

/// A number as a type: the index of an operation in its catalog.
protocol OperationIndex {
    static var value: Int { get }
}

enum FirstIndex: OperationIndex {
    static var value: Int { 0 }
}

enum NextIndex<Previous: OperationIndex>: OperationIndex {
    static var value: Int { Previous.value + 1 }
}

extension CatalogSource {
    /// The subcommands for the catalog's operations, in their order.
    static var operationCommands: [any ParsableCommand.Type] { commands(from: FirstIndex.self) }

    private static func commands<Index: OperationIndex>(
        from index: Index.Type
    ) -> [any ParsableCommand.Type] {
        guard index.value < catalog.operations.count else { return [] }
        return [OperationCommand<Self, Index>.self] + commands(from: NextIndex<Index>.self)
    }
}

/// `usbvfiod OPERATION ID ARGUMENT…`: has a running server execute an operation that a backend
/// declares.
struct OperationCommand<Source: CatalogSource, Index: OperationIndex>: ControlCommand {
    static var operation: BackendOperation { Source.catalog.operations[Index.value] }

    static var configuration: CommandConfiguration {
        CommandConfiguration(
            commandName: operation.name, abstract: operation.summary,
            discussion: operation.discussion)
    }

    /// `<id>`, whose help names the kind of device.
    struct Device: ParsableArguments {
        @Argument(
            help: ArgumentHelp(
                "The \(operation.device); `usbvfiod list` shows the ids."))
        var id: String
    }

    @OptionGroup var control: ControlOptions
    @OptionGroup var request: RequestOptions
    @OptionGroup var device: Device
    @OptionGroup var arguments: OperationOptions<Source, Index>

    func message() throws -> ControlMessage {
        var message = ControlMessage(Self.operation.name, arguments.values)
        message["id"] = .text(device.id)
        for argument in Self.operation.arguments {
            guard case .text(let text)? = arguments.values[argument.name] else { continue }
            switch argument.kind {
            case .specification: try pass(text, of: argument, in: &message)
            case .path(let access): try pass(path: text, access, of: argument, in: &message)
            default: break
            }
        }
        return message
    }

    /// Opens what a specification names, if it is clear to which backend it belongs.
    private func pass(
        _ text: String, of argument: BackendOperation.Argument, in message: inout ControlMessage
    ) throws {
        let backends = Source.catalog.backends(offering: Self.operation.name)
        let named = backends.first { text.hasPrefix("\($0.scheme):") }
        guard let scheme = (named ?? (backends.count == 1 ? backends.first : nil))?.scheme else {
            return
        }
        try message.pass(
            DeviceSpecification.text(text, withScheme: scheme), as: argument.name,
            from: Source.catalog)
    }

    /// Opens a path, if the operation takes a descriptor for it.
    private func pass(
        path: String, _ access: BackendOperation.Argument.PathAccess?,
        of argument: BackendOperation.Argument,
        in message: inout ControlMessage
    ) throws {
        message[argument.name] = .text(absolute(path))
        guard let access else { return }
        do {
            // Without O_NONBLOCK the opening of a FIFO waits for its other end.
            let file = try FileDescriptor.open(
                FilePath(path), access == .read ? .readOnly : .readWrite,
                options: [.closeOnExec, .nonBlocking])
            message.pass(OwnedDescriptor(owning: file.rawValue))
        } catch let error as Errno {
            throw BackendError("cannot open '\(path)': \(error)")
        }
    }

    func text(_ answer: ControlAnswer) -> String {
        var text = Self.operation.confirmation
        for (name, value) in arguments.values {
            text = text.replacing("{\(name)}", with: value.word)
        }
        return printable("\(device.id): \(text)")
    }
}

extension ArgumentValue {
    fileprivate var word: String {
        switch self {
        case .text(let text): text
        case .integer(let number): String(number)
        case .flag(let flag): String(flag)
        case .other: ""
        }
    }
}
