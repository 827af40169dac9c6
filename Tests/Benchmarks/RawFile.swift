// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform

/// A load of reads or writes of an image file by one thread: an upper limit for the server.
///
/// It uses the same offsets of the same file in the same order, and the guest's own buffers, as the
/// server does, so that processor caches and page sizes are the same for both.
final class RawFile {
    private let file: OwnedDescriptor
    /// Owns the memory of the buffers.
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
        try Sample.measure(size: size, processorTime: Self.processorTime) { sample, start in
            while !amount.isReached(sample.commands, since: start) {
                // One clock read per 8 calls: it takes about as long as the shortest of them.
                for _ in 0..<8 {
                    var vector = iovec(
                        iov_base: buffers[sample.commands % buffers.count].baseAddress,
                        iov_len: size)
                    let moved =
                        load.direction == .read
                        ? preadv(file.rawValue, &vector, 1, offset)
                        : pwritev(file.rawValue, &vector, 1, offset)
                    guard moved == size else {
                        throw BenchmarkError("an access to the file has transferred \(moved) bytes")
                    }
                    offset = (offset + size) % StickLoad.span
                    sample.commands += 1
                }
            }
        }
    }

    private static func processorTime() -> Duration {
        var time = timespec()
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
        return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
    }
}
