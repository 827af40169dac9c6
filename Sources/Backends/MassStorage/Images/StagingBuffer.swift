// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import USB

/// Memory through which the worker moves data between an image and a transfer, since only the event
/// loop may access the transfer's buffer.
///
/// It is page-aligned, as direct access asks, and never cleared: only bytes that were copied or read
/// into it leave it. The event loop and the worker take turns, one job at a time, so there is no lock.
@safe
final class StagingBuffer: @unchecked Sendable {
    private let bytes: UnsafeMutableRawBufferPointer

    init(capacity: Int) {
        unsafe bytes = .allocate(byteCount: capacity, alignment: 4096)
    }

    deinit { unsafe bytes.deallocate() }

    var capacity: Int { unsafe bytes.count }

    /// The first `count` bytes, valid for as long as the staging buffer is held.
    func vectors(count: Int) -> IOVectors {
        var vectors = IOVectors()
        unsafe vectors.append(UnsafeMutableRawBufferPointer(rebasing: bytes[..<count]))
        return vectors
    }

    /// Copies `count` bytes of a transfer's buffer, from `offset` on, to the beginning.
    ///
    /// - Returns: the bytes copied, fewer if the buffer does not have them.
    func fill(from buffer: TransferBuffer, at offset: Int, count: Int) -> Int {
        var span = unsafe bytes.bindMemory(to: UInt8.self).mutableSpan
        return buffer.copy(to: &span, 0..<count, from: offset)
    }

    /// Copies the first `count` bytes into a transfer's buffer, from `offset` on.
    func drain(into buffer: TransferBuffer, at offset: Int, count: Int) {
        let span = unsafe UnsafeBufferPointer(bytes.bindMemory(to: UInt8.self)).span
        buffer.copy(from: span.extracting(first: count), at: offset)
    }
}
