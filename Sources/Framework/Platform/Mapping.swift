// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// A range of a file mapped into this process and shared with others.
///
/// The file belongs to a peer, who may make it shorter at any time. Touching the lost pages would
/// raise SIGBUS, so the range is guarded: the lost pages become zeroes and ``isIntact`` turns false.
@safe
public final class Mapping {
    /// The mapped bytes. Others write them too, so they must be read once and interpreted as a copy.
    public let bytes: UnsafeMutableRawBufferPointer
    /// Asks what ``isIntact`` does, without the mapping at hand.
    public let integrity: Integrity

    /// Whether the file still has all pages of a mapping. It is a number and not a reference, so that
    /// every access can ask. It means nothing once the mapping is gone.
    public struct Integrity: Sendable {
        fileprivate let slot: CInt

        /// False once an access has met pages that the file no longer has.
        public var isIntact: Bool { !clinux_guard_was_hit(slot) }
    }

    /// Maps `count` bytes of the file from `offset` on, for reading and, if asked, for writing.
    ///
    /// - Throws: `EINVAL` for a range the file does not have, otherwise what `mmap(2)` says.
    public init(
        _ file: borrowing OwnedDescriptor, offset: UInt64, count: UInt64, writable: Bool
    ) throws(Errno) {
        guard count > 0, let length = Int(exactly: count), let start = Int(exactly: offset),
            !start.addingReportingOverflow(length).overflow
        else { throw .invalidArgument }
        var status = stat()
        let number = file.rawValue
        _ = try systemCall { unsafe fstat(number, &status) }
        // Only regular files (memfd and hugetlbfs among them) have a size that means something.
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

    /// False once an access has met pages that the file no longer has.
    public var isIntact: Bool { integrity.isIntact }

    deinit {
        clinux_guard_remove(integrity.slot)
        unsafe munmap(bytes.baseAddress, bytes.count)
    }
}
