// SPDX-License-Identifier: Apache-2.0

/// The values of a specification's parameters, for a backend's initializer. Each error says which
/// values are allowed.
extension DeviceSpecification {
    /// The value of a parameter; `nil` if the parameter is absent.
    ///
    /// - Throws: if the parameter has no value.
    public func value(of name: String) throws(BackendError) -> String? {
        guard let parameter = parameters.first(where: { $0.name == name }) else { return nil }
        guard let value = parameter.value, !value.isEmpty else {
            throw BackendError("'\(name)' in '\(text)' needs a value: \(name)=…")
        }
        return value
    }

    /// The value of a flag (`NAME`, `NAME=on` or `NAME=off`); `nil` if the flag is absent.
    ///
    /// - Throws: if the value is another word.
    public func flag(_ name: String) throws(BackendError) -> Bool? {
        guard let parameter = parameters.first(where: { $0.name == name }) else { return nil }
        switch parameter.value {
        case nil, "on", "yes", "true": return true
        case "off", "no", "false": return false
        case .some(let other):
            throw BackendError("'\(name)' in '\(text)' is on or off, not '\(other)'")
        }
    }

    /// A number, decimal or hexadecimal after `0x`; `nil` if the parameter is absent.
    ///
    /// - Throws: if the value is not a number in `range`.
    public func number<Number: FixedWidthInteger>(
        _ name: String, in range: ClosedRange<Number>
    ) throws(BackendError) -> Number? {
        guard let text = try value(of: name) else { return nil }
        let number =
            text.hasPrefix("0x") ? Number(text.dropFirst(2), radix: 16) : Number(text, radix: 10)
        guard let number, range.contains(number) else {
            throw BackendError(
                "'\(name)=\(text)' must be a number from \(range.lowerBound) to \(range.upperBound)"
            )
        }
        return number
    }

    /// A value of a type with raw values in words; `nil` if the parameter is absent.
    ///
    /// - Throws: if the value is another word.
    public func choice<Choice: RawRepresentable & CaseIterable>(
        _ name: String, of type: Choice.Type = Choice.self
    ) throws(BackendError) -> Choice? where Choice.RawValue == String {
        guard let text = try value(of: name) else { return nil }
        guard let choice = Choice(rawValue: text) else {
            let words = Choice.allCases.map(\.rawValue).joined(separator: ", ")
            throw BackendError("'\(name)=\(text)' must be one of: \(words)")
        }
        return choice
    }

    /// Checks the names of the parameters against a backend's declaration.
    ///
    /// - Throws: if a parameter is unknown, or a required one is absent.
    public func check(against backend: any DeviceBackend.Type) throws(BackendError) {
        let known = backend.parameters + Self.common
        for parameter in parameters where !known.contains(where: { $0.name == parameter.name }) {
            let names = known.map(\.name).joined(separator: ", ")
            throw BackendError(
                "'\(parameter.name)' is not a parameter of '\(scheme)'; there are: \(names)")
        }
        for parameter in known where parameter.isRequired {
            guard parameters.contains(where: { $0.name == parameter.name }) else {
                throw BackendError(
                    "'\(text)' lacks '\(parameter.name)=\(parameter.value ?? "")', "
                        + "for example: \(backend.example)")
            }
        }
    }
}

/// The identifier of a device. Every specification may have one, and no backend reads it.
extension DeviceSpecification {
    private static let identifierName = "id"

    /// The longest identifier, in bytes.
    private static let longestIdentifier = 64

    /// The parameters of all backends, which the program reads itself.
    public static let common = [
        Parameter(
            identifierName, value: "NAME",
            summary: "the device's name in requests; by default the kind and a number")
    ]

    /// The identifier that the operator chose with `id=NAME`; `nil` if there is none.
    ///
    /// - Throws: if ``checkIdentifier(_:)`` does.
    public func identifier() throws(BackendError) -> String? {
        guard let name = try value(of: Self.identifierName) else { return nil }
        try Self.checkIdentifier(name)
        return name
    }

    /// Checks an identifier: 1 to 64 letters, digits, `-`, `_` and `.`.
    ///
    /// - Throws: if it is too long, empty or has other characters.
    public static func checkIdentifier(_ name: String) throws(BackendError) {
        let isValid =
            (1...longestIdentifier).contains(name.utf8.count)
            && name.utf8.allSatisfy { byte in
                (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20)
                    || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
                    || [UInt8(ascii: "-"), UInt8(ascii: "_"), UInt8(ascii: ".")].contains(byte)
            }
        guard isValid else {
            throw BackendError(
                "'\(name.prefix(80))' cannot be the id of a device: 1 to 64 letters, digits, "
                    + "'-', '_' and '.' can")
        }
    }
}
