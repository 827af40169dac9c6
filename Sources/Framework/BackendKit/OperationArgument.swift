// SPDX-License-Identifier: Apache-2.0

extension BackendOperation {
    /// A declared argument of an operation: a field of its request, and an argument or option of its
    /// subcommand.
    ///
    /// On the command line required arguments stand in their order; the others are options
    /// (`--name VALUE`) and flags (`--name`).
    public struct Argument: Sendable, Equatable {
        /// The name of the field and of the option: lowercase letters, digits and `-`; neither
        /// `request` nor `id`.
        public let name: String
        /// The type of the value and its bounds.
        public let kind: Kind
        /// Whether a call without the argument is refused; never so for a flag.
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

    /// The type of an argument's value, with its bounds.
    public enum Kind: Sendable, Equatable {
        /// A string of at most `maximumLength` bytes in UTF-8, which may be empty. A whole request has
        /// at most 65536 bytes.
        case text(maximumLength: Int = .max)
        /// The path of a file or device node, of 1 to 4095 bytes.
        ///
        /// With an access mode, `usbvfiod` opens the file with its own rights and passes the descriptor
        /// along as ``OperationCall/descriptor``. A request of another client may come without one; the
        /// backend then opens the path.
        case path(opening: PathAccess? = nil)
        /// A whole number within bounds.
        case integer(ClosedRange<Int>)
        /// `true` or `false`; `false` when it is absent.
        case flag
        /// One of several words.
        case choice([String])
        /// The parameters of a device specification of the backend, with or without the scheme, such as
        /// `file=other.img,readonly`.
        ///
        /// `usbvfiod` opens what it names with ``DeviceBackend/open(_:)`` and passes it along as
        /// ``OperationCall/descriptor``.
        case specification
    }

    /// The access mode with which `usbvfiod` opens a path.
    public enum PathAccess: Sendable {
        /// Reading.
        case read
        /// Reading and writing.
        case readWrite
    }
}

/// A value of an argument, as it came from a request or from the command line.
public enum ArgumentValue: Equatable, Sendable, Codable {
    /// A string.
    case text(String)
    /// A number without a fraction.
    case integer(Int)
    /// `true` or `false`.
    case flag(Bool)
    /// A JSON value of another type, which no argument takes.
    case other

    /// Decodes a single value; one of another type becomes ``other``.
    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let text = try? container.decode(String.self) {
            self = .text(text)
        } else if let flag = try? container.decode(Bool.self) {
            self = .flag(flag)
        } else if let number = try? container.decode(Int.self) {
            self = .integer(number)
        } else {
            self = .other
        }
    }

    /// Encodes the value alone; ``other`` becomes `null`.
    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .text(let text): try container.encode(text)
        case .integer(let number): try container.encode(number)
        case .flag(let flag): try container.encode(flag)
        case .other: try container.encodeNil()
        }
    }
}

extension BackendOperation.Kind {
    /// The longest path that Linux takes, without its end (PATH_MAX).
    private static let longestPath = 4095

    /// Whether a descriptor may come with the argument.
    public var takesDescriptor: Bool {
        switch self {
        case .specification: true
        case .path(let access): access != nil
        default: false
        }
    }

    /// Whether a value has the right type and is within the bounds.
    func accepts(_ value: ArgumentValue) -> Bool {
        switch (self, value) {
        case (.text(let limit), .text(let text)): text.utf8.count <= limit
        case (.path, .text(let text)):
            (1...Self.longestPath).contains(text.utf8.count) && !text.utf8.contains(0)
        case (.integer(let range), .integer(let number)): range.contains(number)
        case (.flag, .flag), (.specification, .text): true
        case (.choice(let words), .text(let text)): words.contains(text)
        default: false
        }
    }

    /// The rest of an error "'rules' must be …".
    var expectation: String {
        switch self {
        case .text(.max), .specification: "a string"
        case .text(let limit): "a string of at most \(limit) bytes"
        case .path: "a path of 1 to \(Self.longestPath) bytes"
        case .integer(let range): "a number from \(range.lowerBound) to \(range.upperBound)"
        case .flag: "true or false"
        case .choice(let words): "one of: \(words.joined(separator: ", "))"
        }
    }
}

extension BackendOperation.Argument {
    /// Checks a value against the argument's kind.
    ///
    /// - Throws: an error that says which values the argument takes.
    public func check(_ value: ArgumentValue) throws(BackendError) {
        guard kind.accepts(value) else {
            throw BackendError("'\(name)' must be \(kind.expectation)")
        }
    }

    /// The value that a word of the command line stands for.
    ///
    /// Numbers are decimal, or hexadecimal after `0x`.
    ///
    /// - Throws: an error that says which values the argument takes.
    public func value(of word: String) throws(BackendError) -> ArgumentValue {
        var value = ArgumentValue.text(word)
        if case .integer = kind {
            let number =
                word.hasPrefix("0x") ? Int(word.dropFirst(2), radix: 16) : Int(word, radix: 10)
            value = number.map { .integer($0) } ?? .other
        }
        try check(value)
        return value
    }
}

extension [BackendOperation.Argument] {
    /// Checks the fields of a request against declared arguments, in their order.
    ///
    /// - Parameters:
    ///   - fields: the fields, without those that are not arguments.
    ///   - name: the request's name, for errors.
    /// - Returns: the fields, all of them declared, and of the declared types.
    /// - Throws: an error that names the first field that is missing, wrong or not declared.
    public func checked(
        _ fields: [String: ArgumentValue], of name: String
    ) throws(BackendError) -> [String: ArgumentValue] {
        for argument in self {
            if let value = fields[argument.name] {
                try argument.check(value)
            } else if argument.isRequired {
                throw BackendError("the request lacks '\(argument.name)'")
            }
        }
        let unknown = fields.keys.filter { field in !contains { $0.name == field } }
        if let first = unknown.sorted().first {
            throw BackendError("'\(name)' has no field '\(first.prefix(80))'")
        }
        return fields
    }
}
