// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials
internal import Glibc
internal import Platform
internal import Service
internal import SystemPackage

/// The other end of a control socket: asks one question and waits for the answer.
final class ControlClient {
    /// A request: its fields, and the descriptor that is passed along.
    struct Message {
        enum Value: Encodable {
            case text(String)
            case flag(Bool)

            func encode(to encoder: any Encoder) throws {
                var container = encoder.singleValueContainer()
                switch self {
                case .text(let text): try container.encode(text)
                case .flag(let flag): try container.encode(flag)
                }
            }
        }

        var fields: [String: Value]
        fileprivate let descriptor: SharedDescriptor?

        init(_ fields: [String: Value]) {
            self.fields = fields
            descriptor = nil
        }

        init(_ fields: [String: Value], _ descriptor: consuming OwnedDescriptor) {
            self.fields = fields
            self.descriptor = SharedDescriptor(descriptor)
        }
    }

    fileprivate final class SharedDescriptor {
        let descriptor: OwnedDescriptor
        init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }
    }

    /// More than the longest answer has.
    private static let longestAnswer = 16 << 20

    private let socket: OwnedDescriptor
    private let path: String

    /// Connects to the server that listens at `path`.
    init(path: String, within limit: Duration) throws {
        ignoreWriteSignals()
        self.path = path
        let end = ContinuousClock.now + limit
        while true {
            do throws(Errno) {
                socket = try UnixSocket.connect(to: path)
                return
            } catch {
                guard error == .wouldBlock, ContinuousClock.now < end else {
                    throw Failure(description: Self.explain(error, path))
                }
                // Many others wait to be let in, which nothing tells the end of.
                usleep(10_000)
            }
        }
    }

    private static func explain(_ error: Errno, _ path: String) -> String {
        switch error {
        case .noSuchFileOrDirectory:
            "there is no '\(path)': start the server with --control-path \(path)"
        case .connectionRefused:
            "no server listens at '\(path)' any more: start it with --control-path \(path)"
        case .permissionDenied:
            "'\(path)' may not be used: it is for the user who started the server"
        default: "cannot connect to '\(path)': \(error)"
        }
    }

    /// Sends a request; returns the answer as it came, without the end of its line, and what it means.
    func ask(_ message: Message, within limit: Duration) throws -> (String, ControlAnswer) {
        let end = ContinuousClock.now + limit
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        let request = try Array(encoder.encode(message.fields)) + [UInt8(ascii: "\n")]
        do throws(Errno) {
            try send(request, message.descriptor, until: end)
        } catch .brokenPipe, .connectionReset {
            // It may have said why it did not listen.
        } catch {
            throw Failure(description: "cannot ask the server at '\(path)': \(error)")
        }
        let line = try receiveLine(until: end, limit)
        guard let answer = ControlAnswer(line: line) else {
            throw Failure(description: "what listens at '\(path)' does not answer as usbvfiod does")
        }
        return (String(decoding: line, as: UTF8.self), answer)
    }

    private func send(
        _ bytes: [UInt8], _ passed: SharedDescriptor?, until end: ContinuousClock.Instant
    ) throws(Errno) {
        var sent = 0
        while sent < bytes.count {
            // A descriptor travels with the first byte.
            let descriptors =
                sent == 0 ? passed.map { [$0.descriptor.rawValue] } ?? [] : []
            var failure: Errno?
            let count = unsafe bytes.withUnsafeBytes { bytes -> Int in
                do throws(Errno) {
                    return try unsafe UnixSocket.send(
                        UnsafeRawBufferPointer(rebasing: bytes[sent...]), descriptors: descriptors,
                        to: socket)
                } catch {
                    failure = error
                    return 0
                }
            }
            sent += count
            guard let failure else { continue }
            guard failure == .wouldBlock, ContinuousClock.now < end else { throw failure }
            _ = try UnixSocket.wait(for: .writable, on: socket, timeout: end - .now)
        }
    }

    private func receiveLine(
        until end: ContinuousClock.Instant, _ limit: Duration
    ) throws -> [UInt8] {
        var line: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while line.count < Self.longestAnswer {
            guard ContinuousClock.now < end else {
                throw Failure(
                    description: "the server has not answered within \(limit): it may still be "
                        + "writing; `usbvfiod list` shows what it is at")
            }
            do {
                var descriptors = DescriptorList()
                let count = try unsafe buffer.withUnsafeMutableBytes { bytes throws(Errno) -> Int in
                    try unsafe UnixSocket.receive(
                        into: bytes, descriptors: &descriptors, from: socket)
                }
                guard count > 0 else { break }
                line += buffer[..<count]
                if line.last == UInt8(ascii: "\n") { return line.dropLast() }
            } catch Errno.wouldBlock {
                _ = try UnixSocket.wait(for: .readable, on: socket, timeout: end - .now)
            } catch Errno.connectionReset {
                break
            }
        }
        throw Failure(
            description: "the server at '\(path)' closed the connection without an answer")
    }
}
