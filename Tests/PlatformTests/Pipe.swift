// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform
import SystemPackage

/// A pipe; see pipe(2).
final class Pipe {
    let readEnd: OwnedDescriptor
    private var writeEnd: OwnedDescriptor?

    init() throws {
        var numbers: [CInt] = [-1, -1]
        _ = try systemCall { pipe(&numbers) }
        // Programs that other tests start must not keep the write end open.
        for number in numbers { _ = try systemCall { fcntl(number, F_SETFD, FD_CLOEXEC) } }
        readEnd = OwnedDescriptor(owning: numbers[0])
        writeEnd = OwnedDescriptor(owning: numbers[1])
    }

    /// The kernel's number of the write end; −1 if it was closed or taken.
    var writeNumber: CInt {
        switch writeEnd {
        case .some(let descriptor): descriptor.rawValue
        case .none: -1
        }
    }

    func write(_ bytes: [UInt8]) throws {
        let number = writeNumber
        _ = try systemCall { Glibc.write(number, bytes, bytes.count) }
    }

    func read(_ count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let number = readEnd.rawValue
        let received = try systemCall { Glibc.read(number, &bytes, count) }
        return Array(bytes[..<received])
    }

    func closeWriteEnd() { writeEnd = nil }

    /// Hands over the write end.
    func takeWriteEnd() -> OwnedDescriptor? { writeEnd.take() }

    /// Whether the write end is open now.
    func isWriteEndOpen() throws -> Bool {
        try !UnixSocket.wait(for: .readable, on: readEnd, timeout: .zero).contains(.closed)
    }

    /// Waits until all copies of the write end are closed.
    ///
    /// A child process that another test has forked has a copy until it calls exec(3).
    func isWriteEndClosed() throws -> Bool {
        try UnixSocket.wait(for: .readable, on: readEnd, timeout: .seconds(10)).contains(.closed)
    }
}
