// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import VFIOUser

/// Cases of RFC 8259, by section.
@Suite("JSON reader")
struct JSONReaderTests {
    static let depth = 4

    private func reader(_ bytes: [UInt8]) -> JSONReader {
        JSONReader(bytes, maximumDepth: Self.depth)
    }

    /// Whether a text is one valid value.
    private func isValid(_ bytes: [UInt8]) -> Bool {
        var reader = reader(bytes)
        do throws(JSONReader.Failure) {
            try reader.skipValue()
            try reader.finish()
            return true
        } catch {
            return false
        }
    }

    private func isValid(_ text: String) -> Bool { isValid(Array(text.utf8)) }

    private func string(_ text: String) throws(JSONReader.Failure) -> String {
        var reader = reader(Array(text.utf8))
        let value = try reader.readString()
        try reader.finish()
        return value
    }

    private func integer(_ text: String) throws(JSONReader.Failure) -> UInt64 {
        var reader = reader(Array(text.utf8))
        let value = try reader.readInteger()
        try reader.finish()
        return value
    }

    // MARK: - 2 and 3: grammar and values

    @Test(
        "valid texts",
        arguments: [
            "{}", "[]", "null", "true", "false", "0", "\"\"", " \t\r\n1 \t\r\n", "[1,2]", "[[]]",
            "{\"a\":1,\"b\":[null,{\"c\":false}]}", "{ \"a\" : 1 , \"b\" : 2 }", "[ ]", "{ }",
            "{\"\":0}",
        ])
    func valid(text: String) { #expect(isValid(text)) }

    @Test(
        "invalid texts",
        arguments: [
            "", " ", "{", "}", "[", "]", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{\"a\"}", "{\"a\":",
            "{\"a\":}", "{\"a\":1,}", "{,}", "{1:1}", "{a:1}", "{'a':1}", "{\"a\" 1}", "{\"a\"::1}",
            "[1}", "{\"a\":1]", "nul", "nulll", "True", "tru", "truefalse", "undefined", "NaN",
            "Infinity", "-Infinity", "//", "/**/1", "[1]//", ",", ":", "\u{b}1", "\u{c}1",
            "\u{a0}1", "\u{feff}1",
        ])
    func invalid(text: String) { #expect(!isValid(text)) }

    @Test(
        "text after a value is refused",
        arguments: ["1 1", "{}{}", "[] x", "\"a\"b", "null,", "{}\0", "1\0"])
    func trailing(text: String) { #expect(!isValid(text)) }

    @Test("every prefix of an object is refused")
    func prefixes() {
        let text = Array(#"{"a":[1,-2.5e+3,"\u00e9\ud83d\ude00"],"b":{"c":null,"d":true}}"#.utf8)
        #expect(isValid(text))
        for count in 0..<text.count { #expect(!isValid(Array(text[..<count]))) }
    }

    @Test("no single byte makes a reader trap")
    func anyByte() {
        let text = Array(#"{"a":[1,"\u0041"]}"#.utf8)
        for index in text.indices {
            for byte in UInt8.min...UInt8.max {
                var changed = text
                changed[index] = byte
                _ = isValid(changed)
            }
        }
    }

    // MARK: - 4 and 5: objects and arrays

    @Test("arrays and objects nest to the limit, one level more is refused")
    func nesting() {
        func arrays(_ depth: Int) -> String {
            String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
        }
        func objects(_ depth: Int) -> String {
            String(repeating: "{\"a\":", count: depth) + "0" + String(repeating: "}", count: depth)
        }
        #expect(isValid(arrays(Self.depth)) && !isValid(arrays(Self.depth + 1)))
        #expect(isValid(objects(Self.depth)) && !isValid(objects(Self.depth + 1)))
        // Values beside each other do not add up.
        #expect(isValid("[" + Array(repeating: "[[]]", count: 100).joined(separator: ",") + "]"))
        #expect(!isValid(String(repeating: "[", count: 1_000_000)))
    }

    @Test("each member of an object is read, one whose name is repeated too")
    func members() throws {
        var reader = reader(Array(#"{"a": 1, "b": {"a": 2}, "a": 3, "": 4}"#.utf8))
        var seen: [String] = []
        try reader.readObject { (name, reader) throws(JSONReader.Failure) in
            if name == "b" {
                seen.append(name)
                try reader.skipValue()
            } else {
                seen.append("\(name)=\(try reader.readInteger())")
            }
        }
        try reader.finish()
        #expect(seen == ["a=1", "b", "a=3", "=4"])
    }

    @Test("a value other than an object is refused", arguments: ["[]", "1", "\"\"", "null", ""])
    func notObject(text: String) {
        var reader = reader(Array(text.utf8))
        #expect(throws: JSONReader.Failure.self) { try reader.readObject { _, _ in } }
    }

    @Test("booleans are read, and nothing else as a boolean")
    func booleans() throws {
        var reader = reader(Array(" true false".utf8))
        #expect(try reader.readBoolean())
        #expect(try !reader.readBoolean())
        for text in ["", "1", "\"true\"", "null", "tru"] {
            var reader = self.reader(Array(text.utf8))
            #expect(throws: JSONReader.Failure.self) { try reader.readBoolean() }
        }
    }

    // MARK: - 6: numbers

    @Test(
        "valid numbers",
        arguments: [
            "0", "-0", "10", "1234567890", "-1", "0.0", "-0.5", "1.25", "1e5", "1E5", "1e+5",
            "1e-5", "0e0", "1.5e10", "1e400", "-1e-400", "123456789012345678901234567890",
        ])
    func validNumbers(text: String) { #expect(isValid(text) && isValid("[\(text)]")) }

    @Test(
        "invalid numbers",
        arguments: [
            "00", "01", "-01", "-", "+1", "1.", ".5", "-.5", "1.e1", "1e", "1e+", "1e-", "e1",
            "0x10", "1_000", "1,000", "1.2.3", "1e1.5", "--1", "- 1", "1 .5", "1 e5", "\u{661}",
        ])
    func invalidNumbers(text: String) { #expect(!isValid(text)) }

    @Test("integers are exact up to 64 bits, one more is refused")
    func integers() throws {
        #expect(try integer("0") == 0)
        #expect(try integer(" 65536 ") == 65536)
        #expect(try integer("9007199254740993") == 9_007_199_254_740_993)
        #expect(try integer("18446744073709551615") == .max)
        for text in [
            "18446744073709551616", "99999999999999999999999", "-1", "-0", "1.0", "1e3", "01",
            "\"1\"", "true", "",
        ] {
            #expect(throws: JSONReader.Failure.self) { try integer(text) }
        }
    }

    // MARK: - 7 and 8: strings

    @Test("escape sequences are resolved")
    func escapes() throws {
        #expect(try string(#""\"\\\/\b\f\n\r\t""#) == "\"\\/\u{8}\u{c}\n\r\t")
        #expect(try string(#""\u0041\u00e9\u20AC\u0000""#) == "A\u{e9}\u{20ac}\0")
        #expect(try string(#""\ud83d\ude00\uD83D\uDE00""#) == "\u{1f600}\u{1f600}")
        #expect(try string(#""\ud800\udc00\udbff\udfff""#) == "\u{10000}\u{10ffff}")
    }

    @Test("a name with escapes equals the name without them")
    func escapedName() throws {
        let data = Array(#"{"capabilities":{"max\u005fmsg_fds":9}}"#.utf8)
        #expect(try VersionCapabilities(data.span).maxDescriptors == 9)
    }

    @Test("a surrogate without its other half becomes U+FFFD")
    func loneSurrogates() throws {
        #expect(try string(#""\ud800""#) == "\u{fffd}")
        #expect(try string(#""\udc00""#) == "\u{fffd}")
        #expect(try string(#""\ud800x""#) == "\u{fffd}x")
        #expect(try string(#""\ud800\n""#) == "\u{fffd}\n")
        #expect(try string(#""\ud800\u0041""#) == "\u{fffd}A")
        #expect(try string(#""\ud800\ud800\udc00""#) == "\u{fffd}\u{10000}")
        #expect(try string(#""\udc00\ud800""#) == "\u{fffd}\u{fffd}")
    }

    @Test(
        "invalid escape sequences",
        arguments: [
            #""\x41""#, #""\a""#, #""\'""#, #""\0""#, #""\U0041""#, #""\u""#, #""\u004""#,
            #""\u004g""#, #""\u+041""#, #""\u 041""#, #""\ud83d\u""#, #""\ud83d\ude0""#, #""\"#,
            "\"\\\n\"",
        ])
    func invalidEscapes(text: String) { #expect(!isValid(text)) }

    @Test("control characters are refused in strings, other characters are not")
    func controlCharacters() {
        for byte in UInt8(0)..<0x20 { #expect(!isValid([0x22, byte, 0x22])) }
        #expect(isValid([0x22, 0x20, 0x22]) && isValid([0x22, 0x7f, 0x22]))
    }

    @Test("UTF-8 of any length is read")
    func unicode() throws {
        #expect(
            try string("\"a\u{e9}\u{20ac}\u{1f600}\u{10ffff}\"")
                == "a\u{e9}\u{20ac}\u{1f600}\u{10ffff}")
    }

    @Test(
        "invalid UTF-8 is refused, in names and in skipped values",
        arguments: [
            [0x80], [0xff], [0xc3], [0xc0, 0xaf], [0xe2, 0x82], [0xed, 0xa0, 0x80],
            [0xf0, 0x9f, 0x98], [0xf4, 0x90, 0x80, 0x80], [0xf8, 0x88, 0x80, 0x80, 0x80],
        ] as [[UInt8]])
    func invalidUnicode(bytes: [UInt8]) {
        #expect(!isValid([0x22] + bytes + [0x22]))
        #expect(!isValid(Array("{\"".utf8) + bytes + Array("\":0}".utf8)))
        #expect(!isValid(bytes))
    }

    // MARK: - Errors

    @Test("an error names the position")
    func position() {
        func failure(_ text: String) -> JSONReader.Failure? {
            var reader = reader(Array(text.utf8))
            do throws(JSONReader.Failure) {
                try reader.skipValue()
                try reader.finish()
                return nil
            } catch {
                return error
            }
        }
        #expect(failure("{\"a\" 1}")?.description == "no ':' at byte 5")
        #expect(failure("[1,]")?.description == "not a value at byte 3")
        #expect(failure("[1")?.position == 2)
        #expect(failure("{} x")?.description == "text after the value at byte 3")
        #expect(failure("[01]")?.description == "a number with a leading zero at byte 1")
        #expect(failure("\"a\u{1}\"")?.position == 2)
    }
}
