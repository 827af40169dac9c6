// SPDX-License-Identifier: Apache-2.0

/// The value of an argument, from a request or from the command line.
public enum ArgumentValue: Equatable, Sendable, Codable {
    /// A string.
    case text(String)
    /// A number without a fraction.
    case integer(Int)
    /// `true` or `false`.
    case flag(Bool)
    /// A JSON value of another type, which no argument takes.
    case other

    /// Decodes a single value.
    ///
    /// A value of another type becomes ``other``.
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

    /// Encodes a single value.
    ///
    /// ``other`` becomes `null`.
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
