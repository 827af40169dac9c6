// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// The contents of the medium: bytes at offsets.
///
/// The event loop reads and writes without waiting, the worker with waiting. They never access
/// overlapping ranges at the same time.
protocol DiskImage: AnyObject, Sendable {
    /// The size, a multiple of ``blockSize`` that does not change while the image is open.
    var byteCount: UInt64 { get }
    var isReadOnly: Bool { get }

    /// Reads into memory segments.
    ///
    /// - Parameter waiting: whether to wait for a disk.
    /// - Returns: the bytes read, possibly fewer than the segments have.
    /// - Throws: without waiting also `EAGAIN` if the read would wait, and `EOPNOTSUPP` if the file
    ///   system does not support reads without waiting.
    func read(into segments: IOVectors, at offset: UInt64, waiting: Bool) throws(Errno) -> Int

    /// Writes memory segments; see ``read(into:at:waiting:)``.
    ///
    /// - Parameter durably: whether the data must be on the disk when this returns.
    func write(
        _ segments: IOVectors, at offset: UInt64, durably: Bool, waiting: Bool
    ) throws(Errno) -> Int

    /// Blocks until all data written before is on the disk.
    func flush() throws(Errno)

    /// Deallocates a range, which reads as zeroes afterwards.
    ///
    /// - Throws: `EOPNOTSUPP` if the file system cannot deallocate.
    func punchHole(at offset: UInt64, count: UInt64) throws(Errno)

    /// Zeroes a range and keeps it allocated.
    ///
    /// - Throws: `EOPNOTSUPP` if the file system has no faster way than writing zeroes.
    func zeroRange(at offset: UInt64, count: UInt64) throws(Errno)
}

/// The image of an absent medium. No command accesses it, as the logical unit reports MEDIUM NOT
/// PRESENT.
final class NoImage: DiskImage {
    let byteCount: UInt64 = 0
    let isReadOnly = true

    func read(into segments: IOVectors, at offset: UInt64, waiting: Bool) throws(Errno) -> Int {
        throw .ioError
    }

    func write(
        _ segments: IOVectors, at offset: UInt64, durably: Bool, waiting: Bool
    ) throws(Errno) -> Int { throw .ioError }

    func flush() throws(Errno) {}
    func punchHole(at offset: UInt64, count: UInt64) throws(Errno) { throw .ioError }
    func zeroRange(at offset: UInt64, count: UInt64) throws(Errno) { throw .ioError }
}

/// The result of a read or write.
struct IOResult: Sendable, Equatable {
    /// Bytes moved before the error.
    var count: Int
    var error: Errno?
}

extension DiskImage {
    /// Reads until the segments are full.
    func readAll(_ segments: IOVectors, at offset: UInt64) -> IOResult {
        repeatedly(segments, at: offset) { (rest, offset) throws(Errno) in
            try read(into: rest, at: offset, waiting: true)
        }
    }

    /// Writes all segments.
    func writeAll(_ segments: IOVectors, at offset: UInt64, durably: Bool) -> IOResult {
        repeatedly(segments, at: offset) { (rest, offset) throws(Errno) in
            try write(rest, at: offset, durably: durably, waiting: true)
        }
    }

    private func repeatedly(
        _ segments: IOVectors, at offset: UInt64,
        _ step: (IOVectors, UInt64) throws(Errno) -> Int
    ) -> IOResult {
        var done = 0
        while done < segments.count {
            do throws(Errno) {
                let count = try step(segments.slice(from: done), offset + UInt64(done))
                // End of file: another process has truncated it.
                guard count > 0 else { return IOResult(count: done, error: .ioError) }
                done += count
            } catch {
                return IOResult(count: done, error: error)
            }
        }
        return IOResult(count: done, error: nil)
    }
}
