// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform
import SystemPackage

/// Two descriptors: what is written to the one is read from the other.
final class Pipe {
    let readEnd: OwnedDescriptor
    private var writeEnd: OwnedDescriptor?

    init() throws {
        var numbers: [CInt] = [-1, -1]
        _ = try systemCall { pipe(&numbers) }
        readEnd = OwnedDescriptor(owning: numbers[0])
        writeEnd = OwnedDescriptor(owning: numbers[1])
    }

    /// The kernel's number of the end to write to.
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

    /// Hands the end to write to over to somebody else.
    func takeWriteEnd() -> OwnedDescriptor? { writeEnd.take() }

    /// Whether nobody has the end to write to any more.
    func isWriteEndClosed() throws -> Bool {
        try UnixSocket.wait(for: .readable, on: readEnd, timeout: .zero).contains(.closed)
    }
}
