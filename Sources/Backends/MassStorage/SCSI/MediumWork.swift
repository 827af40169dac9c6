// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import Synchronization
internal import SystemPackage

/// Tells a job on the worker that nobody waits for it any more.
final class Cancellation: Sendable {
    private let flag = Atomic(false)

    var isCancelled: Bool { flag.load(ordering: .relaxed) }

    func cancel() { flag.store(true, ordering: .relaxed) }
}

/// What commands do to a medium beside moving the guest's bytes; runs on the worker thread.
///
/// Each function returns `nil`, or the sense data that say what went wrong.
extension DiskImage {
    /// A cancelled job may end early; what it returns then means nothing.
    func carryOut(
        _ job: LogicalUnit.MediumJob, durably: Bool, unless cancellation: Cancellation,
        _ lost: LostWrites
    ) -> SenseData? {
        switch job {
        case .flush, .flushInBackground, .eject, .disableWriteCache: return flushed(lost)
        case .verify(let extent): return verify(extent, unless: cancellation)
        case .unmap(let extents):
            for extent in extents {
                if let error = unmap(extent) { return error }
            }
            return durably ? flushed(lost) : nil
        case .fill(let extent, let block, let mayUnmap):
            return fill(extent, block, mayUnmap: mayUnmap) ?? (durably ? flushed(lost) : nil)
        }
    }

    /// Compares the guest's bytes with the medium.
    func compare(_ pieces: IOVectors, at offset: UInt64) -> SenseData? {
        var position = offset
        var result: SenseData?
        unsafe pieces.forEachSegment { bytes in
            var done = 0
            while result == nil, done < bytes.count {
                let length = min(bytes.count - done, scratchSize)
                let part = unsafe UnsafeRawBufferPointer(rebasing: bytes[done..<done + length])
                result = unsafe withScratch(count: length) { scratch, pieces in
                    let movement = readAll(pieces, at: position)
                    if let error = movement.error {
                        return SenseData(
                            reading: error,
                            block: (position + UInt64(movement.count)) / UInt64(blockSize))
                    }
                    return unsafe scratch.elementsEqual(part) ? nil : .miscompare
                }
                done += length
                position += UInt64(length)
            }
        }
        return result
    }

    /// The only job without a bound: a host may verify the whole medium.
    private func verify(_ extent: Extent, unless cancellation: Cancellation) -> SenseData? {
        var position = extent.byteOffset
        let end = position + UInt64(extent.byteCount)
        while position < end, !cancellation.isCancelled {
            let length = Int(min(end - position, UInt64(scratchSize)))
            let movement = unsafe withScratch(count: length) { _, pieces in
                readAll(pieces, at: position)
            }
            if let error = movement.error {
                return SenseData(
                    reading: error,
                    block: (position + UInt64(movement.count)) / UInt64(blockSize))
            }
            position += UInt64(length)
        }
        return nil
    }

    /// A medium that cannot give blocks back keeps them: UNMAP is a request. `EINVAL` is what a disk
    /// with larger blocks says to a range of ours that is not made of whole ones.
    private func unmap(_ extent: Extent) -> SenseData? {
        do throws(Errno) {
            try punchHole(at: extent.byteOffset, count: UInt64(extent.byteCount))
        } catch .notSupported, .invalidArgument {
            return nil
        } catch {
            return SenseData(writing: error, block: extent.block)
        }
        return nil
    }

    private func fill(_ extent: Extent, _ block: [UInt8]?, mayUnmap: Bool) -> SenseData? {
        if block == nil {
            do throws(Errno) {
                let count = UInt64(extent.byteCount)
                if mayUnmap {
                    try punchHole(at: extent.byteOffset, count: count)
                } else {
                    try zeroRange(at: extent.byteOffset, count: count)
                }
                return nil
            } catch .notSupported, .invalidArgument {
                // Written out below.
            } catch {
                return SenseData(writing: error, block: extent.block)
            }
        }
        return write(block, over: extent)
    }

    private func write(_ block: [UInt8]?, over extent: Extent) -> SenseData? {
        let length = min(extent.byteCount, scratchSize)
        return unsafe withScratch(count: length) { scratch, pieces in
            if let block {
                for index in scratch.indices { unsafe scratch[index] = block[index % blockSize] }
            }
            var position = extent.byteOffset
            let end = position + UInt64(extent.byteCount)
            while position < end {
                let part = pieces.slice(from: 0, limit: Int(min(end - position, UInt64(length))))
                let movement = writeAll(part, at: position, durably: false)
                if let error = movement.error {
                    return SenseData(
                        writing: error,
                        block: (position + UInt64(movement.count)) / UInt64(blockSize))
                }
                position += UInt64(part.count)
            }
            return nil
        }
    }

    private func flushed(_ lost: LostWrites) -> SenseData? {
        do throws(Errno) {
            try lost.flush(self)
            return nil
        } catch {
            return SenseData(writing: error, block: nil)
        }
    }

    private func withScratch<R>(
        count: Int, _ body: (UnsafeMutableRawBufferPointer, IOVectors) -> R
    ) -> R {
        let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 4096)
        defer { unsafe scratch.deallocate() }
        unsafe scratch.initializeMemory(as: UInt8.self, repeating: 0)
        var pieces = IOVectors()
        unsafe pieces.append(scratch)
        return unsafe body(scratch, pieces)
    }
}

private let scratchSize = 1 << 18

extension SenseData {
    /// What to tell of a read that failed.
    init(reading error: Errno, block: UInt64) {
        self = error == .badAddress ? .dataPhaseError : .unrecoveredReadError(block: block)
    }

    /// What to tell of a write that failed. A full disk has a code of its own, which hosts turn into
    /// "no space left on device".
    init(writing error: Errno, block: UInt64?) {
        switch error {
        case .noSpace, .diskQuotaExceeded, .fileTooLarge: self = .spaceAllocationFailed
        case .readOnlyFileSystem, .notPermitted: self = .writeProtected
        case .badAddress: self = .dataPhaseError
        default: self = .writeError(block: block)
        }
    }
}
