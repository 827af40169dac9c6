// SPDX-License-Identifier: Apache-2.0

/// What a client says of itself in its VERSION message.
///
/// Specification: the protocol document's section "VFIO_USER_VERSION". The text is JSON; the parser
/// reads the few keys that matter and checks the form of the rest. It is bounded in depth, and its
/// caller in size.
public struct VersionCapabilities: Equatable, Sendable {
    /// Descriptors that the client takes with one message (`max_msg_fds`).
    public var descriptors: UInt64 = 1
    /// Bytes that the client moves with one message (`max_data_xfer_size`).
    public var dataTransfer: UInt64 = 1 << 20
    /// Page sizes of DMA mappings, or'ed together (`pgsizes`).
    public var pageSizes: UInt64?
    /// Whether REGION_WRITE_MULTI is wanted (`write_multiple`).
    public var writesMultiple = false
    /// Whether the client speaks of migration (`migration`).
    public var hasMigration = false

    /// What a client has that says nothing.
    public init() {}

    /// Reads version data, with or without the closing NUL; `nil` if it is malformed.
    public init?(_ data: Span<UInt8>) {
        guard data.count <= VFIOUserLimits.versionData else { return nil }
        var count = data.count
        while count > 0, data[count - 1] == 0 { count -= 1 }
        if count == 0 { return }
        var parser = JSONParser(place: 0, count: count)
        var capabilities = VersionCapabilities()
        let isWhole = parser.object(data, depth: 0) { key, parser in
            guard key == "capabilities" else { return parser.skipValue(data, depth: 1) }
            return parser.object(data, depth: 1) { key, parser in
                capabilities.read(key, data, &parser)
            }
        }
        guard isWhole, parser.isAtEnd(data) else { return nil }
        self = capabilities
    }

    private mutating func read(_ key: String, _ data: Span<UInt8>, _ parser: inout JSONParser)
        -> Bool
    {
        switch key {
        case "max_msg_fds":
            guard let value = parser.number(data) else { return false }
            descriptors = value
        case "max_data_xfer_size":
            guard let value = parser.number(data), value > 0 else { return false }
            dataTransfer = value
        case "pgsizes":
            guard let value = parser.number(data) else { return false }
            pageSizes = value
        case "write_multiple":
            guard let value = parser.boolean(data) else { return false }
            writesMultiple = value
        case "migration":
            hasMigration = true
            return parser.skipValue(data, depth: 2)
        default:
            return parser.skipValue(data, depth: 2)
        }
        return true
    }

    /// Whether the client answers requests for its memory.
    ///
    /// rust-vmm's client, which Cloud Hypervisor uses, takes every message that arrives for the reply
    /// to its last request, so it must never be sent a request. It announces one descriptor and no page
    /// sizes; who announces the same is treated alike.
    public var servesMemory: Bool { pageSizes != nil || descriptors > 1 }

    /// The answer's version data, NUL included.
    ///
    /// QEMU reads the answer into the space of its request, so it must not be longer than
    /// `longest`; without the optional part it is shorter than what any known client sends.
    func reply(longest: Int) -> [UInt8] {
        let required = """
            "max_msg_fds":\(VFIOUserLimits.descriptors),"max_data_xfer_size":\(VFIOUserLimits.dataTransfer)
            """
        let optional = """
            ,"pgsizes":4096,"max_dma_maps":65535\(writesMultiple ? ",\"write_multiple\":true" : "")
            """
        let whole = Array("{\"capabilities\":{\(required)\(optional)}}\0".utf8)
        return whole.count <= longest ? whole : Array("{\"capabilities\":{\(required)}}\0".utf8)
    }
}

/// A place in a JSON text (RFC 8259). Every function leaves the place behind what it has read.
private struct JSONParser {
    var place: Int
    let count: Int

    /// The next byte that is not white space.
    private mutating func peek(_ data: Span<UInt8>) -> UInt8? {
        while place < count {
            switch data[place] {
            case UInt8(ascii: " "), UInt8(ascii: "\t"), UInt8(ascii: "\n"), UInt8(ascii: "\r"):
                place += 1
            default: return data[place]
            }
        }
        return nil
    }

    private mutating func take(_ character: Unicode.Scalar, _ data: Span<UInt8>) -> Bool {
        guard peek(data) == UInt8(ascii: character) else { return false }
        place += 1
        return true
    }

    mutating func isAtEnd(_ data: Span<UInt8>) -> Bool { peek(data) == nil }

    /// Reads an object and calls `member` behind each key, to read the value.
    mutating func object(
        _ data: Span<UInt8>, depth: Int, _ member: (String, inout JSONParser) -> Bool
    ) -> Bool {
        guard depth < VFIOUserLimits.versionDataDepth, take("{", data) else { return false }
        if take("}", data) { return true }
        repeat {
            guard let key = string(data), take(":", data), member(key, &self) else { return false }
        } while take(",", data)
        return take("}", data)
    }

    mutating func skipValue(_ data: Span<UInt8>, depth: Int) -> Bool {
        switch peek(data) {
        case UInt8(ascii: "{"):
            return object(data, depth: depth) { _, parser in
                parser.skipValue(data, depth: depth + 1)
            }
        case UInt8(ascii: "["):
            guard depth < VFIOUserLimits.versionDataDepth, take("[", data) else { return false }
            if take("]", data) { return true }
            repeat {
                guard skipValue(data, depth: depth + 1) else { return false }
            } while take(",", data)
            return take("]", data)
        case UInt8(ascii: "\""): return string(data) != nil
        case UInt8(ascii: "t"), UInt8(ascii: "f"): return boolean(data) != nil
        case UInt8(ascii: "n"): return word("null", data)
        default: return skipNumber(data)
        }
    }

    mutating func boolean(_ data: Span<UInt8>) -> Bool? {
        if word("true", data) { return true }
        if word("false", data) { return false }
        return nil
    }

    /// A whole number that is not negative.
    mutating func number(_ data: Span<UInt8>) -> UInt64? {
        _ = peek(data)
        let start = place
        guard skipNumber(data) else { return nil }
        var value: UInt64 = 0
        for index in start..<place {
            guard let digit = Self.digit(data[index]) else { return nil }
            let (product, overflow) = value.multipliedReportingOverflow(by: 10)
            let (sum, carry) = product.addingReportingOverflow(digit)
            guard !overflow, !carry else { return nil }
            value = sum
        }
        return value
    }

    private mutating func skipNumber(_ data: Span<UInt8>) -> Bool {
        _ = take("-", data)
        let start = place
        guard skipDigits(data) else { return false }
        // A number of several digits does not begin with zero.
        if data[start] == UInt8(ascii: "0"), place - start > 1 { return false }
        if place < count, data[place] == UInt8(ascii: ".") {
            place += 1
            guard skipDigits(data) else { return false }
        }
        if place < count, data[place] | 0x20 == UInt8(ascii: "e") {
            place += 1
            if place < count, data[place] == UInt8(ascii: "+") || data[place] == UInt8(ascii: "-") {
                place += 1
            }
            guard skipDigits(data) else { return false }
        }
        return true
    }

    private mutating func skipDigits(_ data: Span<UInt8>) -> Bool {
        let start = place
        while place < count, Self.digit(data[place]) != nil { place += 1 }
        return place > start
    }

    private static func digit(_ byte: UInt8) -> UInt64? {
        let value = byte &- UInt8(ascii: "0")
        return value <= 9 ? UInt64(value) : nil
    }

    private mutating func word(_ text: StaticString, _ data: Span<UInt8>) -> Bool {
        _ = peek(data)
        var end = place
        for byte in "\(text)".utf8 {
            guard end < count, data[end] == byte else { return false }
            end += 1
        }
        place = end
        return true
    }

    /// A string. Its escapes are checked in form but not resolved: no key of ours has any.
    private mutating func string(_ data: Span<UInt8>) -> String? {
        guard take("\"", data) else { return nil }
        var bytes: [UInt8] = []
        while place < count {
            let byte = data[place]
            place += 1
            switch byte {
            case UInt8(ascii: "\""): return String(decoding: bytes, as: UTF8.self)
            case 0..<0x20: return nil
            case UInt8(ascii: "\\"):
                guard place < count else { return nil }
                bytes.append(byte)
                bytes.append(data[place])
                place += 1
            default: bytes.append(byte)
            }
        }
        return nil
    }
}
