// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform

/// What a stick's file gives to one thread that reads or writes it and does nothing else: no server
/// can be faster.
final class RawFile {
    private let file: Descriptor
    private let buffers: [UnsafeMutableRawBufferPointer]
    private let size: Int
    private let isRead: Bool
    private var place = 0

    init(path: String, _ direction: StickLoad.Direction, size: Int, depth: Int) throws {
        isRead = direction == .read
        self.size = size
        let number = open(path, O_RDWR | O_CLOEXEC)
        guard number >= 0 else { throw BenchmarkError("cannot open \(path)") }
        file = Descriptor(owning: number)
        buffers = (0..<depth).map { _ in
            let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 4096)
            buffer.initializeMemory(as: UInt8.self, repeating: 1)
            return buffer
        }
    }

    deinit { for buffer in buffers { buffer.deallocate() } }

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
                    isRead
                    ? preadv(file.rawValue, &vector, 1, place)
                    : pwritev(file.rawValue, &vector, 1, place)
                guard moved == size else { throw BenchmarkError("the file gave \(moved) bytes") }
                place = (place + size) % StickLoad.span
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
