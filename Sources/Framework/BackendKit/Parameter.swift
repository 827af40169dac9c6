// SPDX-License-Identifier: Apache-2.0

/// A parameter of a device specification, as help and error messages show it.
public struct Parameter: Sendable {
    /// The word before the equals sign, such as `file`.
    public let name: String
    /// A placeholder for the value, such as `PATH`; `nil` for a flag.
    public let value: String?
    /// Whether a specification without the parameter is refused.
    public let isRequired: Bool
    /// A phrase that says what the parameter means and what it is by default.
    public let summary: String

    /// Declares a parameter.
    ///
    /// - Parameters:
    ///   - name: the word before the equals sign.
    ///   - value: a placeholder for the value; `nil` for a flag.
    ///   - isRequired: whether a specification without the parameter is refused.
    ///   - summary: what the parameter means.
    public init(_ name: String, value: String?, isRequired: Bool = false, summary: String) {
        self.name = name
        self.value = value
        self.isRequired = isRequired
        self.summary = summary
    }
}
