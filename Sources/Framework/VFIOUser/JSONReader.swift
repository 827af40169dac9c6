// SPDX-License-Identifier: Apache-2.0

/// A reader of JSON text (RFC 8259) that a client sends.
///
/// The caller reads the values it expects, in the order of the text, and skips all others.
/// Malformed text is refused wherever it stands, in skipped values too.
///
/// Foundation's `JSONDecoder` is not used: this module is the first to read a client's bytes, and
/// the few numbers in VERSION are its only JSON. This reader bounds the depth, stores no value that
/// is skipped, reads integers of 64 bits exactly, and names the byte at fault.
struct JSONReader {
    /// An error in a text, and its position.
    struct Failure: Error, Equatable, CustomStringConvertible {
        let reason: String
        /// The offset of the byte at fault; the length of the text if it ends too early.
        let position: Int

        var description: String { "\(reason) at byte \(position)" }
    }

    private let bytes: [UInt8]
    private let maximumDepth: Int
    private var position = 0
    /// The number of objects and arrays that are open at the position.
    private var depth = 0

    /// Creates a reader of a whole text.
    ///
    /// - Parameters:
    ///   - bytes: the text, encoded as UTF-8 without a byte order mark.
    ///   - maximumDepth: the number of objects and arrays that may be nested.
    init(_ bytes: [UInt8], maximumDepth: Int) {
        self.bytes = bytes
        self.maximumDepth = maximumDepth
    }

    // MARK: - Values

    /// Reads an object (RFC 8259 4).
    ///
    /// A name may occur more than once: `member` is called for each.
    ///
    /// - Parameter member: reads or skips the value of the member with this name.
    mutating func readObject(
        _ member: (_ name: String, inout JSONReader) throws(Failure) -> Void
    ) throws(Failure) {
        try open("{")
        if take("}") { return close() }
        repeat {
            let name = try readString()
            try expect(":")
            try member(name, &self)
        } while take(",")
        try expect("}")
        close()
    }

    /// Reads a string (RFC 8259 7) and resolves its escape sequences.
    ///
    /// An escaped surrogate without its other half, which the grammar permits, becomes U+FFFD.
    mutating func readString() throws(Failure) -> String {
        try expect("\"")
        let start = position
        var content: [UInt8] = []
        while let byte = next() {
            switch byte {
            case UInt8(ascii: "\""):
                guard let text = String(validating: content, as: UTF8.self) else {
                    throw Failure(reason: "a string that is not UTF-8", position: start)
                }
                return text
            case 0..<0x20:
                throw Failure(
                    reason: "a control character in a string", position: position - 1)
            case UInt8(ascii: "\\"): content += Array(String(try readEscape()).utf8)
            default: content.append(byte)
            }
        }
        throw failure("a string without an end")
    }

    /// Reads `true` or `false`.
    mutating func readBoolean() throws(Failure) -> Bool {
        if take(word: "true") { return true }
        if take(word: "false") { return false }
        throw failure("neither true nor false")
    }

    /// Reads a number (RFC 8259 6) without sign, fraction and exponent that fits 64 bits.
    mutating func readInteger() throws(Failure) -> UInt64 {
        _ = peek()
        let start = position
        try skipNumber()
        var value: UInt64 = 0
        for index in start..<position {
            guard let digit = Self.digit(bytes[index]) else {
                throw Failure(reason: "a negative or fractional number", position: start)
            }
            let (product, overflow) = value.multipliedReportingOverflow(by: 10)
            let (sum, carry) = product.addingReportingOverflow(digit)
            guard !overflow, !carry else {
                throw Failure(reason: "a number of more than 64 bits", position: start)
            }
            value = sum
        }
        return value
    }

    /// Reads a value of any kind and discards it.
    mutating func skipValue() throws(Failure) {
        guard let byte = peek() else { throw failure("not a value") }
        switch byte {
        case UInt8(ascii: "{"):
            try readObject { (_, reader) throws(Failure) in try reader.skipValue() }
        case UInt8(ascii: "["): try skipArray()
        case UInt8(ascii: "\""): _ = try readString()
        case UInt8(ascii: "t"), UInt8(ascii: "f"): _ = try readBoolean()
        case UInt8(ascii: "n"):
            guard take(word: "null") else { throw failure("not a value") }
        case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"): try skipNumber()
        default: throw failure("not a value")
        }
    }

    /// Checks that only white space follows.
    mutating func finish() throws(Failure) {
        guard peek() == nil else { throw failure("text after the value") }
    }

    // MARK: - Parts of values

    private mutating func skipArray() throws(Failure) {
        try open("[")
        if take("]") { return close() }
        repeat { try skipValue() } while take(",")
        try expect("]")
        close()
    }

    private mutating func skipNumber() throws(Failure) {
        _ = take("-")
        let start = position
        try skipDigits()
        if bytes[start] == UInt8(ascii: "0"), position - start > 1 {
            throw Failure(reason: "a number with a leading zero", position: start)
        }
        if takeNext(".") { try skipDigits() }
        if takeNext("e") || takeNext("E") {
            _ = takeNext("+") || takeNext("-")
            try skipDigits()
        }
    }

    private mutating func skipDigits() throws(Failure) {
        let start = position
        while position < bytes.count, Self.digit(bytes[position]) != nil { position += 1 }
        guard position > start else { throw failure("not a digit") }
    }

    private static func digit(_ byte: UInt8) -> UInt64? {
        let value = byte &- UInt8(ascii: "0")
        return value <= 9 ? UInt64(value) : nil
    }

    /// Reads an escape sequence behind its backslash.
    private mutating func readEscape() throws(Failure) -> Unicode.Scalar {
        let start = position
        switch next() {
        case UInt8(ascii: "\""): return "\""
        case UInt8(ascii: "\\"): return "\\"
        case UInt8(ascii: "/"): return "/"
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{c}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"): return try readUnicodeEscape()
        default: throw Failure(reason: "not an escape sequence", position: start)
        }
    }

    /// Reads the four digits behind `\u`, and a second such escape if they are a high surrogate.
    private mutating func readUnicodeEscape() throws(Failure) -> Unicode.Scalar {
        let unit = try readCodeUnit()
        guard UTF16.isLeadSurrogate(unit) else { return Unicode.Scalar(unit) ?? "\u{fffd}" }
        let end = position
        guard takeNext("\\"), takeNext("u") else {
            position = end
            return "\u{fffd}"
        }
        let low = try readCodeUnit()
        guard UTF16.isTrailSurrogate(low) else {
            // The second escape is a character of its own.
            position = end
            return "\u{fffd}"
        }
        return Unicode.Scalar(0x10000 + (UInt32(unit & 0x3ff) << 10 | UInt32(low & 0x3ff)))
            ?? "\u{fffd}"
    }

    private mutating func readCodeUnit() throws(Failure) -> UInt16 {
        var unit: UInt16 = 0
        for _ in 0..<4 {
            guard position < bytes.count,
                let digit = Character(Unicode.Scalar(bytes[position])).hexDigitValue
            else { throw failure("not a hexadecimal digit") }
            unit = unit << 4 | UInt16(digit)
            position += 1
        }
        return unit
    }

    // MARK: - Characters

    private mutating func open(_ character: Unicode.Scalar) throws(Failure) {
        _ = peek()
        guard depth < maximumDepth else {
            throw failure("more than \(maximumDepth) nested objects and arrays")
        }
        try expect(character)
        depth += 1
    }

    private mutating func close() { depth -= 1 }

    /// Skips white space (RFC 8259 2) and returns the byte behind it.
    private mutating func peek() -> UInt8? {
        while position < bytes.count {
            switch bytes[position] {
            case UInt8(ascii: " "), UInt8(ascii: "\t"), UInt8(ascii: "\n"), UInt8(ascii: "\r"):
                position += 1
            default: return bytes[position]
            }
        }
        return nil
    }

    private mutating func next() -> UInt8? {
        guard position < bytes.count else { return nil }
        defer { position += 1 }
        return bytes[position]
    }

    /// Skips white space, and a character if it is the next.
    private mutating func take(_ character: Unicode.Scalar) -> Bool {
        _ = peek()
        return takeNext(character)
    }

    /// Skips a character if it is the next.
    private mutating func takeNext(_ character: Unicode.Scalar) -> Bool {
        guard position < bytes.count, bytes[position] == UInt8(ascii: character) else {
            return false
        }
        position += 1
        return true
    }

    private mutating func take(word: StaticString) -> Bool {
        _ = peek()
        let word = Array("\(word)".utf8)
        guard bytes[position...].starts(with: word) else { return false }
        position += word.count
        return true
    }

    private mutating func expect(_ character: Unicode.Scalar) throws(Failure) {
        guard take(character) else { throw failure("no '\(character)'") }
    }

    /// The error of the byte at the position.
    func failure(_ reason: String) -> Failure {
        Failure(reason: reason, position: position)
    }
}
