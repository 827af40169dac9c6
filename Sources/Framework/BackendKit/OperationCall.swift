// SPDX-License-Identifier: Apache-2.0

/// A call of an operation on one device, with arguments of the declared types.
public struct OperationCall {
    /// The name of the operation.
    public let name: String
    /// The open file or device node that came with the request; `nil` if the backend must open it.
    public let descriptor: ReceivedDescriptor?

    private let values: [String: ArgumentValue]
    private var specifications: [String: DeviceSpecification] = [:]

    /// Creates a call and checks its arguments.
    ///
    /// - Parameters:
    ///   - operation: the operation's declaration.
    ///   - values: the arguments; see ``BackendOperation/Argument``.
    ///   - backend: the device's backend, whose scheme a specification may leave out.
    ///   - descriptor: the open file or device node that came with the request.
    /// - Throws: if an argument is missing, wrong or not declared, or a specification is malformed.
    public init(
        _ operation: BackendOperation, _ values: [String: ArgumentValue] = [:],
        for backend: any DeviceBackend.Type, descriptor: ReceivedDescriptor? = nil
    ) throws(BackendError) {
        name = operation.name
        self.descriptor = descriptor
        self.values = try operation.arguments.checked(values, of: operation.name)
        for argument in operation.arguments where argument.kind == .specification {
            guard let text = text(argument.name) else { continue }
            specifications[argument.name] = try DeviceSpecification(
                parsing: DeviceSpecification.text(text, withScheme: backend.scheme))
        }
    }

    /// The value of a text, path or choice argument; `nil` if the call does not have it.
    public func text(_ name: String) -> String? {
        guard case .text(let text)? = values[name] else { return nil }
        return text
    }

    /// The value of an integer argument; `nil` if the call does not have it.
    public func integer(_ name: String) -> Int? {
        guard case .integer(let number)? = values[name] else { return nil }
        return number
    }

    /// Whether a flag is set.
    public func flag(_ name: String) -> Bool { values[name] == .flag(true) }

    /// The value of a specification argument; `nil` if the call does not have it.
    public func specification(_ name: String) -> DeviceSpecification? { specifications[name] }
}
