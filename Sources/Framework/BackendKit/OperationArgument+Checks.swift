// SPDX-License-Identifier: Apache-2.0

extension BackendOperation.Argument.Kind {
    /// The longest path that Linux accepts, without its zero byte (PATH_MAX).
    private static let longestPath = 4095

    /// Whether a descriptor may come with the argument.
    public var takesDescriptor: Bool {
        switch self {
        case .specification: true
        case .path(let access): access != nil
        default: false
        }
    }

    /// Whether a value has the kind's type and is within its bounds.
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

    /// Parses a word of the command line.
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
    /// - Returns: `fields`, all of which are declared and have the declared types.
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
