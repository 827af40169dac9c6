// SPDX-License-Identifier: Apache-2.0

/// What follows `--device`: `scheme:key=value,flag,…`.
///
/// A comma inside a value is written twice, as QEMU's users know it (`file=a,,b.img`). A bare path
/// such as `/dev/bus/usb/001/004` is left whole, for the backend that claims it.
public struct DeviceSpecification: Equatable, Sendable {
    /// The words as the operator wrote them.
    public let text: String
    public let scheme: String
    /// In the order of writing; a flag has an empty value and no `=`.
    public let parameters: [(name: String, value: String?)]

    /// Splits a specification.
    ///
    /// - Throws: when the form is wrong: no scheme, an empty name, a name given twice.
    public init(parsing text: String) throws(BackendError) {
        self.text = text
        // The system's names end there, so what follows would be ignored.
        guard !text.utf8.contains(0) else {
            throw BackendError("the specification of a device contains a zero byte")
        }
        guard let colon = text.firstIndex(of: ":") else {
            scheme = text
            parameters = []
            if text.isEmpty || !Self.isName(text) {
                throw BackendError(
                    "'\(text)' names no device: write BACKEND:KEY=VALUE,… "
                        + "(`usbvfiod backends` lists them)")
            }
            return
        }
        scheme = String(text[..<colon])
        guard Self.isName(scheme) else {
            throw BackendError("'\(scheme)' in '\(text)' is not the name of a backend")
        }
        var found: [(name: String, value: String?)] = []
        for part in Self.split(text[text.index(after: colon)...]) {
            let equals = part.firstIndex(of: "=")
            let name = String(part[..<(equals ?? part.endIndex)])
            let value = equals.map { String(part[part.index(after: $0)...]) }
            guard !name.isEmpty else {
                throw BackendError("'\(text)' has a parameter without a name")
            }
            guard !found.contains(where: { $0.name == name }) else {
                throw BackendError("'\(text)' gives '\(name)' twice")
            }
            found.append((name, value))
        }
        parameters = found
    }

    /// Parameters that every backend has, because the program looks after them itself.
    public static let common = [
        Parameter(
            identifierName, value: "NAME",
            summary: "what requests call it; by default the kind and a number")
    ]

    private static let identifierName = "id"

    /// What the operator wants the device to be called: `id=NAME`.
    public func identifier() throws(BackendError) -> String? {
        guard let name = try value(of: Self.identifierName) else { return nil }
        try Self.checkIdentifier(name)
        return name
    }

    /// Refuses what is not 1 to 64 letters, digits, `-`, `_` or `.`.
    public static func checkIdentifier(_ name: String) throws(BackendError) {
        let isGood =
            (1...64).contains(name.utf8.count)
            && name.utf8.allSatisfy { byte in
                (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20)
                    || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
                    || [UInt8(ascii: "-"), UInt8(ascii: "_"), UInt8(ascii: ".")].contains(byte)
            }
        guard isGood else {
            throw BackendError(
                "'\(name.prefix(80))' cannot be the id of a device: 1 to 64 letters, digits, "
                    + "'-', '_' and '.' can")
        }
    }

    /// The same with another value of a parameter that is there.
    public func replacing(_ name: String, with value: String) throws(BackendError) -> Self {
        let words = parameters.map { parameter in
            guard let old = parameter.value else { return parameter.name }
            let new = parameter.name == name ? value : old
            return "\(parameter.name)=\(Self.doublingCommas(new))"
        }
        return try DeviceSpecification(parsing: "\(scheme):\(words.joined(separator: ","))")
    }

    private static func doublingCommas(_ text: String) -> String {
        text.reduce(into: "") { $0 += $1 == "," ? ",," : String($1) }
    }

    /// The value of a parameter; an error if it stands there without one.
    public func value(of name: String) throws(BackendError) -> String? {
        guard let parameter = parameters.first(where: { $0.name == name }) else { return nil }
        guard let value = parameter.value, !value.isEmpty else {
            throw BackendError("'\(name)' in '\(text)' needs a value: \(name)=…")
        }
        return value
    }

    /// Whether a flag is set: `name`, `name=on` or `name=off`.
    public func flag(_ name: String) throws(BackendError) -> Bool? {
        guard let parameter = parameters.first(where: { $0.name == name }) else { return nil }
        switch parameter.value {
        case nil, "on", "yes", "true": return true
        case "off", "no", "false": return false
        case .some(let other):
            throw BackendError("'\(name)' in '\(text)' is on or off, not '\(other)'")
        }
    }

    /// A number, decimal or with `0x`, within `range`.
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

    /// One of the listed words.
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

    /// Refuses parameters that `backend` does not know, and the lack of those it must have.
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

    public static func == (left: Self, right: Self) -> Bool { left.text == right.text }

    private static func isName(_ text: some StringProtocol) -> Bool {
        !text.isEmpty
            && text.utf8.allSatisfy { byte in
                (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
                    || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
                    || byte == UInt8(ascii: "-")
            }
    }

    /// Cuts at single commas and turns double ones into one.
    private static func split(_ text: Substring) -> [String] {
        guard !text.isEmpty else { return [] }
        var parts: [String] = [""]
        var rest = text
        while let character = rest.popFirst() {
            if character != "," {
                parts[parts.count - 1].append(character)
            } else if rest.first == "," {
                rest.removeFirst()
                parts[parts.count - 1].append(",")
            } else {
                parts.append("")
            }
        }
        return parts
    }
}
