// SPDX-License-Identifier: Apache-2.0

/// An operation on an attached device that a backend offers besides attach and detach, such as
/// `insert`.
///
/// The declaration is all that the program knows of an operation. It becomes a request of the
/// control socket (docs/control-protocol.md) and a subcommand of `usbvfiod`, each with its help and
/// its errors:
///
///     {"request":"load","id":"dice-1","number":6}
///     usbvfiod load dice-1 6 --control-path PATH
///
/// Operations of several backends may share a name if their arguments are the same.
public struct BackendOperation: Sendable {
    /// The name of the request and of the subcommand: lowercase letters, digits and `-`.
    public let name: String
    /// One sentence that says what the operation does.
    public let summary: String
    /// Further sentences for the help page of the subcommand; may be empty.
    public let discussion: String
    /// The noun by which help texts call the device, such as `stick`.
    public let device: String
    /// The arguments besides the device's id, in the order in which they are read.
    public let arguments: [Argument]
    /// The arguments of a valid call, such as `file=other.img`, as the operator types them after
    /// the device's id; may be empty.
    public let example: String
    /// The text that the subcommand prints after success, such as `ejected`.
    ///
    /// `{NAME}` stands for the value of an argument.
    public let confirmation: String
    /// The rest of the error "a device of the kind 'loopback' …" for devices without the operation,
    /// such as `has no medium`.
    public let absence: String

    /// Declares an operation.
    ///
    /// - Parameters:
    ///   - name: lowercase letters, digits and `-`.
    ///   - summary: one sentence that says what the operation does.
    ///   - discussion: further sentences for the help page.
    ///   - device: the noun by which help texts call the device.
    ///   - arguments: the arguments besides the device's id; at most one of them takes a
    ///     descriptor.
    ///   - example: the arguments of a valid call.
    ///   - confirmation: the text that the subcommand prints after success.
    ///   - absence: the rest of the error for devices without the operation.
    public init(
        _ name: String, summary: String, discussion: String = "", device: String = "device",
        arguments: [Argument] = [], example: String = "", confirmation: String = "done",
        absence: String? = nil
    ) {
        self.name = name
        self.summary = summary
        self.discussion = discussion
        self.device = device
        self.arguments = arguments
        self.example = example
        self.confirmation = confirmation
        self.absence = absence ?? "has no operation '\(name)'"
    }

    /// Whether a descriptor may come with a request.
    public var takesDescriptor: Bool { arguments.contains { $0.kind.takesDescriptor } }

    /// The error for a device of a kind that does not have the operation.
    public func unsupportedError(for backend: any DeviceBackend.Type) -> BackendError {
        BackendError("a device of the kind '\(backend.scheme)' \(absence)")
    }
}

/// A backend whose devices have operations besides attach and detach.
public protocol OperableBackend: DeviceBackend {
    /// The operations, in the order of help texts.
    static var operations: [BackendOperation] { get }

    /// Executes an operation on the backend's device, without blocking the loop.
    ///
    /// The arguments have been checked against the declaration. Until the backend calls
    /// `completion`, it gets no other call than ``DeviceBackend/stop()``.
    ///
    /// - Parameters:
    ///   - call: the operation, one of ``operations``, and its arguments.
    ///   - completion: called once, on the loop, before this returns or later, with `nil` or with
    ///     the reason why the operation failed.
    func execute(_ call: OperationCall, completion: @escaping (BackendError?) -> Void)
}
