// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// The medium of a stick: bytes at offsets.
///
/// Calls come from the event loop, which does not want to wait, and from a worker thread; never from
/// both for overlapping ranges at a time.
protocol DiskImage: AnyObject, Sendable {
    /// Fixed while it is open, a multiple of ``blockSize``.
    var byteCount: UInt64 { get }
    var isReadOnly: Bool { get }

    /// Fills the pieces, or their beginning.
    ///
    /// - Throws: without `waiting` also `EAGAIN` (it would have to wait) and `EOPNOTSUPP` (it cannot
    ///   tell, now or later).
    func read(into pieces: IOVectors, at offset: UInt64, waiting: Bool) throws(Errno) -> Int

    /// Writes the pieces, or their beginning; see ``read(into:at:waiting:)``.
    func write(
        _ pieces: IOVectors, at offset: UInt64, durably: Bool, waiting: Bool
    ) throws(Errno) -> Int

    /// Returns when all that was written will survive the loss of power.
    func flush() throws(Errno)

    /// Gives a range back; it reads as zeroes afterwards. `EOPNOTSUPP` where that cannot be had.
    func punchHole(at offset: UInt64, count: UInt64) throws(Errno)

    /// Zeroes a range and keeps its place. `EOPNOTSUPP` where that is no faster than writing.
    func zeroRange(at offset: UInt64, count: UInt64) throws(Errno)
}

/// The medium that is not there. No command comes so far as to read or write it.
final class NoImage: DiskImage {
    let byteCount: UInt64 = 0
    let isReadOnly = true

    func read(into pieces: IOVectors, at offset: UInt64, waiting: Bool) throws(Errno) -> Int {
        throw .ioError
    }

    func write(
        _ pieces: IOVectors, at offset: UInt64, durably: Bool, waiting: Bool
    ) throws(Errno) -> Int { throw .ioError }

    func flush() throws(Errno) {}
    func punchHole(at offset: UInt64, count: UInt64) throws(Errno) { throw .ioError }
    func zeroRange(at offset: UInt64, count: UInt64) throws(Errno) { throw .ioError }
}

/// The only size of logical blocks: what every guest and firmware takes.
let blockSize = 512

/// How far a movement of bytes came, and what stopped it.
struct IOResult: Sendable, Equatable {
    var count: Int
    var error: Errno?
}

extension DiskImage {
    /// Reads until the pieces are full, from byte `done` of them on.
    func readAll(_ pieces: IOVectors, at offset: UInt64, done: Int = 0) -> IOResult {
        move(pieces, at: offset, done: done) { (rest, offset) throws(Errno) in
            try read(into: rest, at: offset, waiting: true)
        }
    }

    /// Writes all pieces, from byte `done` of them on.
    func writeAll(
        _ pieces: IOVectors, at offset: UInt64, durably: Bool, done: Int = 0
    ) -> IOResult {
        move(pieces, at: offset, done: done) { (rest, offset) throws(Errno) in
            try write(rest, at: offset, durably: durably, waiting: true)
        }
    }

    private func move(
        _ pieces: IOVectors, at offset: UInt64, done: Int,
        _ step: (IOVectors, UInt64) throws(Errno) -> Int
    ) -> IOResult {
        var done = done
        while done < pieces.count {
            do throws(Errno) {
                let count = try step(pieces.slice(from: done), offset + UInt64(done))
                // A file that someone has made shorter ends before the medium does.
                guard count > 0 else { return IOResult(count: done, error: .ioError) }
                done += count
            } catch {
                return IOResult(count: done, error: error)
            }
        }
        return IOResult(count: done, error: nil)
    }
}
