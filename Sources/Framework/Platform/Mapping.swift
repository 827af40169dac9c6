// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// A range of a file that is mapped into this process and shared with others (`MAP_SHARED`, mmap(2)).
///
/// Another process owns the file and can truncate it at any time. An access to a truncated page would
/// raise SIGBUS, so the mapping is guarded: from that page on the range reads as zeroes, and
/// ``isIntact`` becomes `false`. The mapping ends when the object is deallocated.
@safe
public final class Mapping {
    /// The mapped memory.
    ///
    /// Other processes write it at the same time: read each byte once and interpret the copy.
    public let bytes: UnsafeMutableRawBufferPointer
    /// Answers the question of ``isIntact`` without a reference to the mapping.
    public let integrity: Integrity

    /// Whether the file still has all pages of a mapping: a number, so that it can be copied and
    /// asked at each access.
    ///
    /// It is valid while the mapping exists.
    public struct Integrity: Sendable {
        fileprivate let slot: CInt

        /// Whether no access has reached a page that the file has lost.
        ///
        /// Any thread may ask.
        public var isIntact: Bool { !clinux_guard_was_hit(slot) }
    }

    /// Maps `count` bytes of a file, from `offset` on.
    ///
    /// - Parameters:
    ///   - file: may be closed after the call.
    ///   - offset: in bytes, a multiple of the file's page size (hugetlbfs has larger pages).
    ///   - count: in bytes, at least 1.
    ///   - writable: whether the memory can be written too.
    /// - Throws: `EINVAL` if `count` is 0, the range extends past the end of the file or `offset` is
    ///   not aligned; `ENOMEM` if 1024 mappings exist; otherwise the errno of mmap(2), such as
    ///   `EACCES` if the file was not opened for this access and `ENODEV` if it cannot be mapped.
    public init(
        _ file: borrowing OwnedDescriptor, offset: UInt64, count: UInt64, writable: Bool
    ) throws(Errno) {
        guard count > 0, let length = Int(exactly: count), let start = Int(exactly: offset),
            !start.addingReportingOverflow(length).overflow
        else { throw .invalidArgument }
        var status = stat()
        let number = file.rawValue
        _ = try systemCall { unsafe fstat(number, &status) }
        // A device's size in `stat` is 0, so only regular files, memfds among them, are checked.
        if status.st_mode & S_IFMT == S_IFREG && start + length > status.st_size {
            throw .invalidArgument
        }
        let protection = writable ? PROT_READ | PROT_WRITE : PROT_READ
        guard
            let address = unsafe mmap(nil, length, protection, MAP_SHARED, number, start),
            unsafe address != MAP_FAILED
        else { throw .current }
        let slot = unsafe clinux_guard_add(address, length)
        guard slot >= 0 else {
            unsafe munmap(address, length)
            throw .noMemory
        }
        unsafe bytes = UnsafeMutableRawBufferPointer(start: address, count: length)
        integrity = Integrity(slot: slot)
    }

    /// Whether no access has reached a page that the file has lost.
    ///
    /// Any thread may ask.
    public var isIntact: Bool { integrity.isIntact }

    deinit {
        clinux_guard_remove(integrity.slot)
        unsafe munmap(bytes.baseAddress, bytes.count)
    }
}
