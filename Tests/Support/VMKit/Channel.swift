// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc

/// A connection to a UNIX socket that is read line by line.
final class Channel {
    private let descriptor: Int32
    private let name: String
    private var received: [UInt8] = []

    /// Connects to the listening socket at `path`.
    init(path: String, name: String) throws {
        self.name = name
        guard let socket = connected(to: path) else { throw VMError("no \(name) at \(path)") }
        descriptor = socket
    }

    deinit { close(descriptor) }

    func send(line: String) throws {
        let bytes = Array("\(line)\n".utf8)
        var sent = 0
        while sent < bytes.count {
            let count = bytes[sent...].withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { throw VMError("\(name) hung up") }
            sent += count
        }
    }

    /// The next line without its end; `nil` at the deadline.
    func line(before deadline: Deadline) throws -> String? {
        var searched = 0
        while true {
            if let end = received[searched...].firstIndex(of: UInt8(ascii: "\n")) {
                let line = String(decoding: received[..<end], as: UTF8.self)
                received.removeFirst(end + 1)
                return line
            }
            searched = received.count
            guard try receive(before: deadline) else { return nil }
        }
    }

    private func receive(before deadline: Deadline) throws -> Bool {
        var item = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&item, 1, deadline.milliseconds) > 0 else { return false }
        var chunk = [UInt8](repeating: 0, count: 65536)
        let count = recv(descriptor, &chunk, chunk.count, 0)
        guard count > 0 else { throw VMError("\(name) hung up") }
        received += chunk[..<count]
        return true
    }
}

/// A descriptor connected to the socket at `path`; `nil` if the connection is refused.
private func connected(to path: String) -> Int32? {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let capacity = MemoryLayout.size(ofValue: address.sun_path)
    precondition(path.utf8.count < capacity, "too long for a socket: \(path)")
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }

    let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
    let descriptor = socket(AF_UNIX, type, 0)
    let status = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }
    if status == 0 { return descriptor }
    close(descriptor)
    return nil
}
