// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import Synchronization
internal import SystemPackage

/// An operation on the medium that runs on the worker and has no data stage.
enum MediumOperation: Equatable, Sendable {
    case flush
    /// IMMED: the status is sent before the flush; the next command reports an error of it.
    case flushInBackground
    /// Flushes, then ejects the medium.
    case eject
    /// Flushes, then clears WCE.
    case disableWriteCache
    /// Reads the blocks and discards the data.
    case verify(Extent)
    case unmap([Extent])
    /// Writes one block repeatedly; `nil` is a block of zeroes.
    case fill(Extent, block: [UInt8]?, mayUnmap: Bool)

    /// The operation in log lines.
    var displayName: String {
        switch self {
        case .flush, .flushInBackground, .eject, .disableWriteCache: "flushing"
        case .verify: "verifying"
        case .unmap: "unmapping blocks"
        case .fill: "filling blocks"
        }
    }
}

/// A flag by which the event loop cancels an operation that runs on the worker.
final class Cancellation: Sendable {
    private let flag = Atomic(false)

    var isCancelled: Bool { flag.load(ordering: .relaxed) }

    func cancel() { flag.store(true, ordering: .relaxed) }
}

/// Medium operations, which run on the worker. Each function returns `nil`, or the sense data of
/// its error.
extension DiskImage {
    /// Runs a medium operation. A cancelled operation may end early; its result is meaningless.
    ///
    /// - Parameter durably: the effect must be on the disk when this returns.
    func run(
        _ operation: MediumOperation, durably: Bool, cancellation: Cancellation,
        _ lostWrites: LostWrites
    ) -> SenseData? {
        switch operation {
        case .flush, .flushInBackground, .eject, .disableWriteCache: return flush(lostWrites)
        case .verify(let extent): return verify(extent, cancellation: cancellation)
        case .unmap(let extents):
            for extent in extents {
                if let error = unmap(extent) { return error }
            }
            return durably ? flush(lostWrites) : nil
        case .fill(let extent, let block, let mayUnmap):
            return fill(extent, block, mayUnmap: mayUnmap) ?? (durably ? flush(lostWrites) : nil)
        }
    }

    /// Compares Data-Out bytes with the medium.
    func compare(_ expected: IOVectors, at offset: UInt64) -> SenseData? {
        var position = offset
        var result: SenseData?
        unsafe expected.forEachSegment { bytes in
            var done = 0
            while result == nil, done < bytes.count {
                let length = min(bytes.count - done, scratchSize)
                let part = unsafe UnsafeRawBufferPointer(rebasing: bytes[done..<done + length])
                result = unsafe withScratch(count: length) { scratch, vectors in
                    readFailure(readAll(vectors, at: position), at: position)
                        ?? (unsafe scratch.elementsEqual(part) ? nil : .miscompare)
                }
                done += length
                position += UInt64(length)
            }
        }
        return result
    }

    /// Verifies that the blocks are readable. It is the only operation without a bound, since a
    /// host may verify the whole medium, so it checks for cancellation.
    private func verify(_ extent: Extent, cancellation: Cancellation) -> SenseData? {
        var position = extent.byteOffset
        let end = position + UInt64(extent.byteCount)
        while position < end, !cancellation.isCancelled {
            let length = Int(min(end - position, UInt64(scratchSize)))
            let failure = unsafe withScratch(count: length) { _, vectors in
                readFailure(readAll(vectors, at: position), at: position)
            }
            if let failure { return failure }
            position += UInt64(length)
        }
        return nil
    }

    private func readFailure(_ result: IOResult, at offset: UInt64) -> SenseData? {
        result.error.map {
            SenseData(reading: $0, block: (offset + UInt64(result.count)) / UInt64(blockSize))
        }
    }

    /// Unmaps blocks. An image that cannot punch holes keeps them, as UNMAP is a hint. A disk
    /// with larger blocks reports `EINVAL` for a range that is not aligned to them.
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
                // Zeroes are written instead.
            } catch {
                return SenseData(writing: error, block: extent.block)
            }
        }
        return write(block, over: extent)
    }

    private func write(_ block: [UInt8]?, over extent: Extent) -> SenseData? {
        let length = min(extent.byteCount, scratchSize)
        return unsafe withScratch(count: length) { scratch, vectors in
            if let block {
                for index in scratch.indices { unsafe scratch[index] = block[index % blockSize] }
            }
            var position = extent.byteOffset
            let end = position + UInt64(extent.byteCount)
            while position < end {
                let part = vectors.slice(from: 0, limit: Int(min(end - position, UInt64(length))))
                let result = writeAll(part, at: position, durably: false)
                if let error = result.error {
                    return SenseData(
                        writing: error,
                        block: (position + UInt64(result.count)) / UInt64(blockSize))
                }
                position += UInt64(part.count)
            }
            return nil
        }
    }

    private func flush(_ lostWrites: LostWrites) -> SenseData? {
        do throws(Errno) {
            try lostWrites.flush(self)
            return nil
        } catch {
            return SenseData(writing: error, block: nil)
        }
    }

    /// Calls `body` with zeroed, page-aligned memory, as bytes and as vectors.
    private func withScratch<R>(
        count: Int, _ body: (UnsafeMutableRawBufferPointer, IOVectors) -> R
    ) -> R {
        let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 4096)
        defer { unsafe scratch.deallocate() }
        unsafe scratch.initializeMemory(as: UInt8.self, repeating: 0)
        var vectors = IOVectors()
        unsafe vectors.append(scratch)
        return unsafe body(scratch, vectors)
    }
}

private let scratchSize = 1 << 18

extension SenseData {
    /// The sense data of a failed read.
    init(reading error: Errno, block: UInt64) {
        self = error == .badAddress ? .dataPhaseError : .unrecoveredReadError(block: block)
    }

    /// The sense data of a failed write. Hosts report a full disk as "no space left on device".
    init(writing error: Errno, block: UInt64?) {
        switch error {
        case .noSpace, .diskQuotaExceeded, .fileTooLarge: self = .spaceAllocationFailed
        case .readOnlyFileSystem, .notPermitted: self = .writeProtected
        case .badAddress: self = .dataPhaseError
        default: self = .writeError(block: block)
        }
    }
}
