// SPDX-License-Identifier: Apache-2.0

extension BackendOperation {
    /// A declared argument of an operation: a field of its request, and an argument or option of
    /// its subcommand.
    ///
    /// On the command line, required arguments are positional, in the order of declaration; the
    /// others are options (`--name VALUE`) and flags (`--name`).
    public struct Argument: Sendable, Equatable {
        /// The name of the field and of the option: lowercase letters, digits and `-`; neither
        /// `request` nor `id`.
        public let name: String
        /// The type of the value and its bounds.
        public let kind: Kind
        /// Whether a call without the argument is refused; `false` for a flag.
        public let isRequired: Bool
        /// The word for the value in help texts, such as `medium`.
        public let label: String
        /// One sentence that says what the argument means.
        public let summary: String

        /// Declares an argument.
        ///
        /// - Parameters:
        ///   - name: lowercase letters, digits and `-`.
        ///   - kind: the type of the value and its bounds.
        ///   - isRequired: whether a call without the argument is refused; ignored for a flag.
        ///   - label: the word for the value in help texts; by default the name.
        ///   - summary: one sentence that says what the argument means.
        public init(
            _ name: String, _ kind: Kind, isRequired: Bool = true, label: String? = nil,
            summary: String
        ) {
            self.name = name
            self.kind = kind
            self.isRequired = isRequired && kind != .flag
            self.label = label ?? name
            self.summary = summary
        }
    }
}

extension BackendOperation.Argument {
    /// The type of an argument's value, with its bounds.
    public enum Kind: Sendable, Equatable {
        /// A string of at most `maximumLength` bytes in UTF-8, which may be empty. A whole request
        /// has at most 65536 bytes.
        case text(maximumLength: Int = .max)
        /// The path of a file or device node, of 1 to 4095 bytes.
        ///
        /// With an access mode, the subcommand opens the file with its own rights and passes the
        /// descriptor as ``OperationCall/descriptor``. A request of another client may have no
        /// descriptor; the backend then opens the path.
        case path(opening: PathAccess? = nil)
        /// A whole number within bounds.
        case integer(ClosedRange<Int>)
        /// `true` or `false`; `false` when it is absent.
        case flag
        /// One of several words.
        case choice([String])
        /// The parameters of a device specification of the backend, with or without the scheme,
        /// such as `file=other.img,readonly`.
        ///
        /// The subcommand opens the file or device with ``DeviceBackend/open(_:)`` and passes the
        /// descriptor as ``OperationCall/descriptor``.
        case specification
    }

    /// The access mode with which the subcommand opens a path.
    public enum PathAccess: Sendable {
        /// Reading.
        case read
        /// Reading and writing.
        case readWrite
    }
}
