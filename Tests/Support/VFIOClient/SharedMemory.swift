// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import Platform
internal import SystemPackage

/// Memory in a memfd, as a VMM allocates it for its guest.
public final class SharedMemory {
    public let size: Int
    private let file: OwnedDescriptor
    private let mapping: Mapping

    /// Zeroed memory.
    public init(size: Int) throws {
        self.size = size
        file = OwnedDescriptor(
            owning: try systemCall { clinux_memfd_create("memory", CLINUX_MFD_CLOEXEC) })
        let number = file.rawValue
        _ = try systemCall { ftruncate(number, size) }
        mapping = try Mapping(file, offset: 0, count: UInt64(size), writable: true)
    }

    /// Maps the memory of an existing file.
    public init(_ file: borrowing OwnedDescriptor, size: Int) throws {
        self.size = size
        self.file = try file.duplicate()
        mapping = try Mapping(file, offset: 0, count: UInt64(size), writable: true)
    }

    /// The kernel's number of the file.
    public var descriptor: CInt { file.rawValue }

    /// Changes the size of the file while it may be mapped elsewhere.
    public func resizeFile(to size: Int) throws {
        let number = file.rawValue
        _ = try systemCall { ftruncate(number, size) }
    }

    public func bytes(at offset: Int, count: Int) -> [UInt8] {
        Array(mapping.bytes[offset..<offset + count])
    }

    public func write(_ bytes: [UInt8], at offset: Int) {
        mapping.bytes[offset..<offset + bytes.count].copyBytes(from: bytes)
    }
}

/// An eventfd that a server signals an interrupt with.
public final class EventFD {
    private let event: OwnedDescriptor

    public init() throws {
        event = OwnedDescriptor(
            owning: try systemCall { eventfd(0, CInt(EFD_CLOEXEC | EFD_NONBLOCK)) })
    }

    /// The kernel's number.
    public var descriptor: CInt { event.rawValue }

    /// The number of signals since the last call.
    public func take() -> UInt64 {
        var count: eventfd_t = 0
        return eventfd_read(event.rawValue, &count) == 0 ? count : 0
    }

    /// Waits until it is signalled; `false` at the timeout.
    public func poll(atMost limit: Duration) throws -> Bool {
        try UnixSocket.wait(for: .readable, on: event, timeout: limit).contains(.readable)
    }
}
