// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import USB

/// The memory through which the worker moves data between an image and a transfer, as only the
/// event loop may access the transfer's buffer.
///
/// It is page-aligned for direct I/O, and not zeroed: callers copy out only bytes that they have
/// copied or read in. It needs no lock, because the event loop accesses it only while no job of the
/// worker does.
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
    /// - Returns: the number of bytes copied, which is smaller if the buffer is shorter or revoked.
    func fill(from buffer: TransferBuffer, at offset: Int, count: Int) -> Int {
        unsafe buffer.copy(
            into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<count]), at: offset)
    }

    /// Copies the first `count` bytes into a transfer's buffer, from `offset` on.
    func drain(into buffer: TransferBuffer, at offset: Int, count: Int) {
        unsafe buffer.copy(from: UnsafeRawBufferPointer(rebasing: bytes[..<count]), at: offset)
    }
}
