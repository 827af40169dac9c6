// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Platform
internal import Service
internal import SystemPackage

/// A client of a control socket: sends one request and waits for its answer.
final class ControlClient {
    /// The maximum length of an answer in bytes. A list of all devices with the longest
    /// specifications is shorter.
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
                // The queue of the listening socket is full, and no event reports free space in it.
                usleep(10_000)
            }
        }
    }

    private static func explain(_ error: Errno, _ path: String) -> String {
        switch error {
        case .noSuchFileOrDirectory:
            "there is no '\(path)': start the server with --control-path \(path)"
        case .connectionRefused:
            "no server listens at '\(path)': start it with --control-path \(path)"
        case .permissionDenied:
            "no permission to use '\(path)': only the user who started the server has it"
        default: "cannot connect to '\(path)': \(error)"
        }
    }

    /// Sends a request and waits for the answer.
    ///
    /// - Returns: the answer as it came, without its line feed, and parsed.
    func send(
        _ message: ControlMessage, within limit: Duration
    ) throws -> (String, ControlAnswer) {
        let end = ContinuousClock.now + limit
        let request = try message.line
        do throws(Errno) {
            try send(request, message.descriptor, until: end)
        } catch .brokenPipe, .connectionReset {
            // The server may have sent an answer with the reason before it closed the socket.
        } catch {
            throw Failure(description: "cannot send to the server at '\(path)': \(error)")
        }
        let line = try receiveLine(until: end, limit)
        guard let answer = ControlAnswer(line: line) else {
            throw Failure(description: "the server at '\(path)' does not answer as usbvfiod does")
        }
        return (String(decoding: line, as: UTF8.self), answer)
    }

    private func send(
        _ bytes: [UInt8], _ passed: ControlMessage.SharedDescriptor?,
        until end: ContinuousClock.Instant
    ) throws(Errno) {
        var sent = 0
        while sent < bytes.count {
            // The descriptor goes with the first byte.
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
                        + "writing; `usbvfiod list` shows the state of its devices")
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
