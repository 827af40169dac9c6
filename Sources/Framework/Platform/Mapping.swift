// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
internal import SystemPackage

/// A range of a file that is mapped into this process and shared with others (`MAP_SHARED`,
/// mmap(2)).
///
/// Another process owns the file and can truncate it at any time. An access to a truncated page
/// would raise SIGBUS, so the mapping is guarded: from that page on the range reads as zeroes, and
/// ``isIntact`` becomes `false`. The mapping ends when the object is deallocated.
@safe
public final class Mapping {
    /// The mapped memory.
    ///
    /// Other processes write it at the same time: read each byte once and interpret the copy.
    public let bytes: UnsafeMutableRawBufferPointer
    /// Checks ``isIntact`` without a reference to the mapping.
    public let integrity: Integrity

    /// Checks whether the file still has all pages of a mapping.
    ///
    /// It is a number, so that it can be copied and checked at each access.
    ///
    /// It is valid while the mapping exists.
    public struct Integrity: Sendable {
        fileprivate let slot: CInt

        /// Whether no access has reached a page that the file has lost.
        ///
        /// Any thread may call it.
        public var isIntact: Bool { !clinux_guard_was_hit(slot) }
    }

    /// Maps `count` bytes of a file, from `offset` on.
    ///
    /// - Parameters:
    ///   - file: may be closed after the call.
    ///   - offset: in bytes, a multiple of the file's page size (hugetlbfs has larger pages).
    ///   - count: in bytes, at least 1.
    ///   - writable: whether the memory can be written too.
    /// - Throws: a ``MappingError``. The errno is that of mmap(2) if the kernel refuses the
    ///   mapping, such as `EACCES` if the file was not opened for this access and `ENODEV` if it
    ///   cannot be mapped.
    public init(
        _ file: borrowing OwnedDescriptor, offset: UInt64, count: UInt64, writable: Bool
    ) throws(MappingError) {
        guard count > 0, let length = Int(exactly: count), let start = Int(exactly: offset),
            !start.addingReportingOverflow(length).overflow
        else { throw .invalidRange }
        let number = file.rawValue
        try Self.check(number, end: start + length)
        let protection = writable ? PROT_READ | PROT_WRITE : PROT_READ
        guard
            let address = unsafe mmap(nil, length, protection, MAP_SHARED, number, start),
            unsafe address != MAP_FAILED
        else {
            let error = Errno.current
            let pageSize = clinux_page_size(number)
            throw error == .invalidArgument && offset % pageSize != 0
                ? .misalignedOffset(pageSize: pageSize) : .failed(error)
        }
        let slot = unsafe clinux_guard_add(address, length)
        guard slot >= 0 else {
            unsafe munmap(address, length)
            throw .tooManyMappings
        }
        unsafe bytes = UnsafeMutableRawBufferPointer(start: address, count: length)
        integrity = Integrity(slot: slot)
    }

    /// The number of mappings that can exist at a time.
    static let limit = Int(CLINUX_GUARD_CAPACITY)

    /// Throws if a regular file, such as a memfd, ends before `end`.
    ///
    /// The size of a device is unknown.
    private static func check(_ file: CInt, end: Int) throws(MappingError) {
        var status = stat()
        do throws(Errno) {
            _ = try systemCall { unsafe fstat(file, &status) }
        } catch {
            throw .failed(error)
        }
        if status.st_mode & S_IFMT == S_IFREG && end > status.st_size {
            throw .pastEndOfFile(fileSize: UInt64(clamping: status.st_size))
        }
    }

    /// Whether no access has reached a page that the file has lost.
    ///
    /// Any thread may call it.
    public var isIntact: Bool { integrity.isIntact }

    deinit {
        clinux_guard_remove(integrity.slot)
        unsafe munmap(bytes.baseAddress, bytes.count)
    }
}
