// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials

/// The reason why a request was refused or failed.
public struct ControlError: Error, Equatable, CustomStringConvertible {
    /// The error for programs.
    public enum Code: String, Codable, Sendable {
        case badRequest = "bad-request"
        case unknownRequest = "unknown-request"
        case noSuchDevice = "no-such-device"
        case idTaken = "id-taken"
        case busy
        case tooMany = "too-many"
        /// The device, or the file or host device behind it, does not allow the request.
        case refused
        /// The request took effect, with a loss of data.
        case failed
    }

    public let code: Code
    /// The error for people: what is wrong and what to do.
    public let reason: String

    public init(_ code: Code, _ reason: String) {
        self.code = code
        self.reason = reason
    }

    public var description: String { reason }
}

/// A device, as answers describe it.
public struct ControlDevice: Codable, Equatable, Sendable {
    public enum State: String, Codable, Sendable {
        case attached
        /// The device is in no port, for example because its host device is disconnected.
        case waiting
        /// The device is off the bus, and its last data is being written.
        case detaching
    }

    public let id: String
    /// The specification with which the device was attached.
    public let specification: String
    /// The device in a few words, with the current medium.
    public let summary: String?
    public let speed: String?
    /// The port of the root hub, from 1.
    public let port: Int?
    public let state: State

    private enum CodingKeys: String, CodingKey {
        case id, specification = "spec", summary, speed, port, state
    }
}

/// The answer to a request: one JSON object in a line of its own.
public struct ControlAnswer: Codable, Equatable, Sendable {
    /// The version of the protocol. It increases when something changes that clients rely on.
    public static let protocolVersion = 1

    /// Whether the request has succeeded.
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

    /// Creates the answer to a request that has succeeded and has no result.
    public init() {}

    /// Creates the answer to a request that has been refused or has failed.
    public init(_ error: ControlError) {
        isGood = false
        code = error.code
        self.error = error.reason
    }

    /// The answer in JSON, with the line feed.
    public var line: [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        // Strings, numbers and flags cannot fail to be encoded.
        let object = (try? encoder.encode(self)).map { Array($0) } ?? Array(#"{"ok":false}"#.utf8)
        return object + [UInt8(ascii: "\n")]
    }

    /// Parses a line; returns `nil` if it is not an answer.
    public init?(line: [UInt8]) {
        guard let answer = try? JSONDecoder().decode(Self.self, from: Data(line)) else {
            return nil
        }
        self = answer
    }
}
