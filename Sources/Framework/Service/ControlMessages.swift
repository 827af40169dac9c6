// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials

/// A request of docs/control-protocol.md: one JSON object, in a line of its own.
enum ControlSocketRequest: Equatable {
    case list
    case attach(specification: String, id: String?)
    case detach(id: String)
    case insert(id: String, medium: String, force: Bool)
    case eject(id: String, force: Bool)
    case faults(id: String, rules: String)

    /// Whether a descriptor may come with it.
    var takesDescriptor: Bool {
        switch self {
        case .attach, .insert: true
        default: false
        }
    }

    init(line: [UInt8]) throws(ControlError) {
        var fields = try Fields(line)
        let name = try fields.text("request")
        switch name {
        case "list": self = .list
        case "attach":
            self = .attach(
                specification: try fields.text("spec"), id: try fields.optionalText("id"))
        case "detach": self = .detach(id: try fields.text("id"))
        case "insert":
            self = .insert(
                id: try fields.text("id"), medium: try fields.text("spec"),
                force: try fields.flag("force"))
        case "eject":
            self = .eject(id: try fields.text("id"), force: try fields.flag("force"))
        case "faults":
            self = .faults(id: try fields.text("id"), rules: try fields.text("rules"))
        default:
            throw ControlError(
                .unknownRequest,
                "there is no request '\(name.prefix(80))'; there are: "
                    + "list, attach, detach, insert, eject, faults")
        }
        try fields.requireEmpty(name)
    }

    /// The fields of a request that nobody has looked at yet.
    private struct Fields {
        private var values: [String: Value]

        private enum Value: Decodable {
            case text(String)
            case flag(Bool)
            case other

            init(from decoder: any Decoder) throws {
                let container = try decoder.singleValueContainer()
                if let text = try? container.decode(String.self) {
                    self = .text(text)
                } else if let flag = try? container.decode(Bool.self) {
                    self = .flag(flag)
                } else {
                    self = .other
                }
            }
        }

        init(_ line: [UInt8]) throws(ControlError) {
            do {
                values = try JSONDecoder().decode([String: Value].self, from: Data(line))
            } catch {
                throw ControlError(
                    .badRequest,
                    #"the line is not a JSON object; one is, for example: {"request":"list"}"#)
            }
        }

        mutating func optionalText(_ name: String) throws(ControlError) -> String? {
            switch values.removeValue(forKey: name) {
            case nil: return nil
            case .text(let text): return text
            default: throw ControlError(.badRequest, "'\(name)' must be a string")
            }
        }

        mutating func text(_ name: String) throws(ControlError) -> String {
            guard let text = try optionalText(name) else {
                throw ControlError(.badRequest, "the request lacks '\(name)'")
            }
            return text
        }

        /// False if it is not there.
        mutating func flag(_ name: String) throws(ControlError) -> Bool {
            switch values.removeValue(forKey: name) {
            case nil: return false
            case .flag(let flag): return flag
            default: throw ControlError(.badRequest, "'\(name)' must be true or false")
            }
        }

        func requireEmpty(_ request: String) throws(ControlError) {
            guard let first = values.keys.sorted().first else { return }
            throw ControlError(
                .badRequest, "'\(request)' has no field '\(first.prefix(80))'")
        }
    }
}

/// Why a request was not carried out.
public struct ControlError: Error, Equatable, CustomStringConvertible {
    /// For programs.
    public enum Code: String, Codable, Sendable {
        case badRequest = "bad-request"
        case unknownRequest = "unknown-request"
        case noSuchDevice = "no-such-device"
        case idTaken = "id-taken"
        case busy
        case tooMany = "too-many"
        /// The device, or what it is made of, does not allow it.
        case refused
        /// It was done, with a loss.
        case failed
    }

    public let code: Code
    /// For people: what is wrong and what to do.
    public let reason: String

    public init(_ code: Code, _ reason: String) {
        self.code = code
        self.reason = reason
    }

    public var description: String { reason }
}

/// A device as answers tell of it.
public struct ControlDevice: Codable, Equatable, Sendable {
    public enum State: String, Codable, Sendable {
        case attached
        /// It is not plugged in now: the device behind it has gone, for example.
        case waiting
        /// Its last data is being written.
        case detaching
    }

    public let id: String
    /// As it was asked for.
    public let specification: String
    /// What it is now.
    public let summary: String?
    public let speed: String?
    /// Of the root hub, counting from 1.
    public let port: Int?
    public let state: State

    private enum CodingKeys: String, CodingKey {
        case id, specification = "spec", summary, speed, port, state
    }
}

/// The answer to a request: one JSON object, in a line of its own.
public struct ControlAnswer: Codable, Equatable, Sendable {
    /// The version of the protocol, which grows when something that clients rely on changes.
    public static let protocolVersion = 1

    public var isGood = true
    public var code: ControlError.Code?
    public var error: String?
    public var version: Int?
    /// Whether a virtual machine monitor is connected.
    public var hasClient: Bool?
    public var devices: [ControlDevice]?
    public var device: ControlDevice?

    private enum CodingKeys: String, CodingKey {
        case isGood = "ok", code, error, version = "protocol", hasClient = "client", devices, device
    }

    public init() {}

    public init(_ error: ControlError) {
        isGood = false
        code = error.code
        self.error = error.reason
    }

    /// The line, with its end.
    public var line: [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        // Nothing in it can fail to be encoded.
        let object = (try? encoder.encode(self)).map { Array($0) } ?? Array(#"{"ok":false}"#.utf8)
        return object + [UInt8(ascii: "\n")]
    }

    /// `nil` for what is no answer.
    public init?(line: [UInt8]) {
        guard let answer = try? JSONDecoder().decode(Self.self, from: Data(line)) else {
            return nil
        }
        self = answer
    }
}
