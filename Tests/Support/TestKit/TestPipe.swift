// SPDX-License-Identifier: Apache-2.0

internal import Glibc
public import Platform
internal import SystemPackage

/// A pipe: bytes written to its write end are read from its read end.
///
/// A test sends copies of the write end to the object under test, and asks with
/// ``areCopiesClosed(within:)`` whether they are closed again.
public final class TestPipe {
    public let readEnd: OwnedDescriptor
    private var writeEnd: OwnedDescriptor?

    public init() throws {
        var numbers: [CInt] = [-1, -1]
        _ = try systemCall { pipe(&numbers) }
        for number in numbers { _ = fcntl(number, F_SETFD, FD_CLOEXEC) }
        readEnd = OwnedDescriptor(owning: numbers[0])
        writeEnd = OwnedDescriptor(owning: numbers[1])
    }

    /// The kernel's number of the write end; -1 once this object has closed it or handed it over.
    public var writeNumber: CInt {
        switch writeEnd {
        case .some(let descriptor): descriptor.rawValue
        case .none: -1
        }
    }

    public func write(_ bytes: [UInt8]) throws {
        let number = writeNumber
        _ = try systemCall { Glibc.write(number, bytes, bytes.count) }
    }

    /// The bytes of one `read`, up to `count`.
    public func read(_ count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let number = readEnd.rawValue
        let received = try systemCall { Glibc.read(number, &bytes, count) }
        return Array(bytes[..<received])
    }

    public func closeWriteEnd() { writeEnd = nil }

    /// Hands the write end over to the caller.
    public func takeWriteEnd() -> OwnedDescriptor? { writeEnd.take() }

    /// Whether the write end or a copy of it is open now.
    public func isWriteEndOpen() throws -> Bool { try !isWriteEndClosed(within: .zero) }

    /// Whether the write end and every copy of it are closed now or within `limit`.
    ///
    /// A process that another test has forked holds a copy until it executes its program, so a test
    /// that expects `true` must wait.
    public func isWriteEndClosed(within limit: Duration = .seconds(30)) throws -> Bool {
        try UnixSocket.wait(for: [], on: readEnd, timeout: limit).contains(.closed)
    }

    /// Closes the write end, and returns whether every copy of it is closed now or within `limit`.
    public func areCopiesClosed(within limit: Duration = .seconds(30)) throws -> Bool {
        closeWriteEnd()
        return try isWriteEndClosed(within: limit)
    }
}
