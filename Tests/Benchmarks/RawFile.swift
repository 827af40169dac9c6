// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform

/// What a stick's file gives to one thread that reads or writes it and does nothing else: no server
/// can be faster.
///
/// It does what the server does: the same places of the same file, in the same order, with the
/// guest's own buffers in turns. So processor caches and the sizes of pages favour neither side.
final class RawFile {
    private let file: OwnedDescriptor
    /// Keeps the buffers' memory.
    private let load: StickLoad
    private let buffers: [UnsafeMutableRawBufferPointer]
    private var size: Int { load.size }
    private var offset = 0

    init(path: String, like load: StickLoad) throws {
        self.load = load
        buffers = load.buffers
        let number = open(path, O_RDWR | O_CLOEXEC)
        guard number >= 0 else { throw BenchmarkError("cannot open \(path)") }
        file = OwnedDescriptor(owning: number)
    }

    func run(_ amount: Amount) throws -> Sample {
        var sample = Sample()
        let used = Self.processorTime()
        let start = ContinuousClock.now
        while !amount.isReached(sample.commands, since: start) {
            // The clock is looked at now and then, not for each of the shortest calls.
            for _ in 0..<8 {
                var vector = iovec(
                    iov_base: buffers[sample.commands % buffers.count].baseAddress, iov_len: size)
                let moved =
                    load.direction == .read
                    ? preadv(file.rawValue, &vector, 1, offset)
                    : pwritev(file.rawValue, &vector, 1, offset)
                guard moved == size else { throw BenchmarkError("the file gave \(moved) bytes") }
                offset = (offset + size) % StickLoad.span
                sample.commands += 1
            }
        }
        sample.time = ContinuousClock.now - start
        sample.processorTime = Self.processorTime() - used
        sample.bytes = sample.commands * size
        return sample
    }

    private static func processorTime() -> Duration {
        var time = timespec()
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
        return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
    }
}
