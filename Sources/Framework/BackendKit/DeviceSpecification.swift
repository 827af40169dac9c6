// SPDX-License-Identifier: Apache-2.0

/// A device specification: `SCHEME:KEY=VALUE,FLAG,…`, as it follows `--device`.
///
/// A comma inside a value is doubled, as in QEMU's options (`file=a,,b.img`). A specification
/// without parameters may leave out the colon.
public struct DeviceSpecification: Equatable, Sendable {
    /// The specification as the operator wrote it.
    public let text: String
    /// The word before the colon, which names a backend.
    public let scheme: String
    /// The parameters, in the order of the text; a flag without an equals sign has the value `nil`.
    public let parameters: [(name: String, value: String?)]

    /// Parses a specification.
    ///
    /// - Throws: if the scheme is not a valid name, a parameter has no name or appears twice, or
    ///   the text contains a zero byte.
    public init(parsing text: String) throws(BackendError) {
        self.text = text
        // System calls end a path at a zero byte, so the rest of a value would be ignored.
        guard !text.utf8.contains(0) else {
            throw BackendError("the specification of a device contains a zero byte")
        }
        guard let colon = text.firstIndex(of: ":") else {
            scheme = text
            parameters = []
            if !Self.isName(text) {
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
        var parameters: [(name: String, value: String?)] = []
        for part in Self.split(text[text.index(after: colon)...]) {
            let equals = part.firstIndex(of: "=")
            let name = String(part[..<(equals ?? part.endIndex)])
            let value = equals.map { String(part[part.index(after: $0)...]) }
            guard !name.isEmpty else {
                throw BackendError("'\(text)' has a parameter without a name")
            }
            guard !parameters.contains(where: { $0.name == name }) else {
                throw BackendError("'\(text)' gives '\(name)' twice")
            }
            parameters.append((name, value))
        }
        self.parameters = parameters
    }

    /// Returns the specification with another value for one of its parameters.
    public func replacing(_ name: String, with value: String) throws(BackendError) -> Self {
        let words = parameters.map { parameter in
            guard let old = parameter.value else { return parameter.name }
            let new = parameter.name == name ? value : old
            return "\(parameter.name)=\(Self.doublingCommas(new))"
        }
        return try DeviceSpecification(parsing: "\(scheme):\(words.joined(separator: ","))")
    }

    /// Compares the texts of the specifications.
    public static func == (left: Self, right: Self) -> Bool { left.text == right.text }

    /// Returns the text of a specification with its scheme, which `text` may leave out.
    public static func text(_ text: String, withScheme scheme: String) -> String {
        text.hasPrefix("\(scheme):") ? text : "\(scheme):\(text)"
    }

    /// Whether a word can be a scheme or the name of an operation: lowercase letters, digits and
    /// `-`.
    static func isName(_ text: some StringProtocol) -> Bool {
        !text.isEmpty
            && text.utf8.allSatisfy { byte in
                (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
                    || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
                    || byte == UInt8(ascii: "-")
            }
    }

    /// Splits parameters at single commas and reduces doubled ones to one.
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

    private static func doublingCommas(_ text: String) -> String {
        text.reduce(into: "") { $0 += $1 == "," ? ",," : String($1) }
    }
}
