// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials

/// Returns a word as a shell reads it back: in quotes if it has a special character.
func shellWord(_ word: String) -> String {
    let isPlain = word.allSatisfy { character in
        character.isASCII
            && (character.isLetter || character.isNumber || "/._-=,:+@".contains(character))
    }
    guard !isPlain else { return word }
    return "'" + word.replacing("'", with: #"'\''"#) + "'"
}

/// Returns a text without terminal control characters: a name may come from a device or from
/// another client.
func printable(_ text: String) -> String {
    String(
        String.UnicodeScalarView(
            text.unicodeScalars.map { scalar in
                scalar.properties.generalCategory == .control ? "\u{fffd}" : scalar
            }))
}

/// Returns a value as JSON, with its keys in alphabetical order.
func json(
    _ value: some Encodable, _ formatting: JSONEncoder.OutputFormatting = .prettyPrinted
) throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = formatting.union([.sortedKeys, .withoutEscapingSlashes])
    return String(decoding: try encoder.encode(value), as: UTF8.self)
}
