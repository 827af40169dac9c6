// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import USB

/// Memory that the worker reads from or writes to an image. The event loop copies it to or from a
/// transfer's buffer, which the worker must not access.
///
/// The memory is page-aligned for direct I/O. It is not zeroed: callers copy out only bytes that
/// they have filled. It needs no lock, because the event loop accesses it only while the worker has
/// no job that uses it.
@safe
final class StagingBuffer: @unchecked Sendable {
    private let bytes: UnsafeMutableRawBufferPointer

    init(capacity: Int) {
        unsafe bytes = .allocate(byteCount: capacity, alignment: 4096)
    }

    deinit { unsafe bytes.deallocate() }

    var capacity: Int { unsafe bytes.count }

    /// The first `count` bytes, valid for the lifetime of the staging buffer.
    func vectors(count: Int) -> IOVectors {
        var vectors = IOVectors()
        unsafe vectors.append(UnsafeMutableRawBufferPointer(rebasing: bytes[..<count]))
        return vectors
    }

    /// Copies `count` bytes of a transfer's buffer, from `offset` on, to the beginning.
    ///
    /// - Returns: the number of bytes copied: fewer than `count` if the transfer's buffer ends
    ///   before or is inaccessible.
    func fill(from buffer: TransferBuffer, at offset: Int, count: Int) -> Int {
        unsafe buffer.copy(
            into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<count]), at: offset)
    }

    /// Copies the first `count` bytes into a transfer's buffer, from `offset` on.
    func drain(into buffer: TransferBuffer, at offset: Int, count: Int) {
        unsafe buffer.copy(from: UnsafeRawBufferPointer(rebasing: bytes[..<count]), at: offset)
    }
}
