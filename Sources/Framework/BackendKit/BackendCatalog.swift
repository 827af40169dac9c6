// SPDX-License-Identifier: Apache-2.0

/// The backends that a program was built with.
public struct BackendCatalog: Sendable {
    /// The backends, in the order of help texts.
    public let backends: [any DeviceBackend.Type]
    /// The operations of all backends, in the order of ``backends``, each name once.
    public let operations: [BackendOperation]

    /// Creates a catalog of backends.
    ///
    /// Traps if two backends have the same scheme, or if operations of the same name have different
    /// arguments: the program could not distinguish them.
    public init(_ backends: any DeviceBackend.Type...) {
        self.backends = backends
        var operations: [BackendOperation] = []
        for operation in backends.flatMap({ Self.operations(of: $0) }) {
            if let other = operations.first(where: { $0.name == operation.name }) {
                precondition(
                    other.hasSameArguments(as: operation),
                    "two backends declare '\(operation.name)' with different arguments")
            } else {
                operation.checkDeclaration()
                operations.append(operation)
            }
        }
        self.operations = operations
        precondition(
            Set(backends.map { $0.scheme }).count == backends.count,
            "two backends have one scheme: \(backends.map { $0.scheme })")
    }

    /// The operations that a backend declares; none if it is not an ``OperableBackend``.
    public static func operations(of backend: any DeviceBackend.Type) -> [BackendOperation] {
        (backend as? any OperableBackend.Type)?.operations ?? []
    }

    /// The backends that declare an operation of this name.
    public func backends(offering operation: String) -> [any DeviceBackend.Type] {
        backends.filter { backend in
            Self.operations(of: backend).contains { $0.name == operation }
        }
    }

    /// The forms of names without a scheme that the backends recognise.
    public var bareNames: [BareName] { backends.flatMap { $0.bareNames } }

    /// Parses a device specification, or translates the bare name that stands for one.
    ///
    /// - Throws: if the text is malformed; see ``DeviceSpecification/init(parsing:)``.
    public func specification(_ text: String) throws(BackendError) -> DeviceSpecification {
        for name in bareNames {
            if let specification = name.specification(for: text) {
                return try DeviceSpecification(parsing: specification)
            }
        }
        return try DeviceSpecification(parsing: text)
    }

    /// Finds the backend that a specification or bare name means.
    ///
    /// Checks the names of the parameters, and opens nothing.
    ///
    /// - Throws: if no backend has the scheme, or a parameter is unknown or missing.
    public func resolve(
        _ text: String
    ) throws(BackendError) -> (backend: any DeviceBackend.Type, DeviceSpecification) {
        let specification = try specification(text)
        guard let type = backends.first(where: { $0.scheme == specification.scheme }) else {
            let schemes = backends.map { $0.scheme }.joined(separator: ", ")
            throw BackendError("no backend '\(specification.scheme)'; there are: \(schemes)")
        }
        try specification.check(against: type)
        return (type, specification)
    }

    /// Opens the device that a specification or bare name means.
    ///
    /// - Throws: if ``resolve(_:)`` or the backend's initializer does.
    public func makeBackend(
        _ text: String, context: BackendContext
    ) throws(BackendError) -> any DeviceBackend {
        let (type, specification) = try resolve(text)
        return try type.init(specification, context: context)
    }
}

extension BackendOperation {
    /// Names of requests and subcommands that the control socket and the command line define.
    private static let reservedNames = ["attach", "backends", "detach", "devices", "help", "list"]
    /// Names of fields and options that the control socket and the command line define.
    private static let reservedArguments = [
        "control-path", "help", "id", "json", "request", "timeout", "version",
    ]

    fileprivate func hasSameArguments(as other: BackendOperation) -> Bool {
        arguments.map(\.name) == other.arguments.map(\.name)
            && arguments.map(\.kind) == other.arguments.map(\.kind)
            && arguments.map(\.isRequired) == other.arguments.map(\.isRequired)
    }

    /// Traps on a declaration that can become neither a request nor a subcommand.
    fileprivate func checkDeclaration() {
        let names = arguments.map(\.name)
        precondition(
            DeviceSpecification.isName(name) && !Self.reservedNames.contains(name),
            "'\(name)' cannot be the name of an operation")
        precondition(
            names.allSatisfy {
                DeviceSpecification.isName($0) && !Self.reservedArguments.contains($0)
            } && Set(names).count == names.count,
            "the arguments of '\(name)' cannot be called \(names)")
        precondition(
            arguments.count { $0.kind.takesDescriptor } <= 1,
            "'\(name)' has two arguments that take a descriptor")
    }
}
