// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

/// Patterns that are written to and compared with a buffer.
@Suite struct TransferBufferPatternTests {
    /// Memory in segments of given lengths, with gaps of 16 bytes between them.
    private final class Memory {
        private final class Owner {}

        private let allocation: UnsafeMutableRawBufferPointer
        let buffer: TransferBuffer

        init(_ segments: [Int]) {
            let count = segments.reduce(0) { $0 + $1 + 16 }
            allocation = .allocate(byteCount: count, alignment: 1)
            allocation.initializeMemory(as: UInt8.self, repeating: 0xee)
            let lease = MemoryLease()
            var start = 0
            for length in segments {
                lease.append(
                    UnsafeMutableRawBufferPointer(rebasing: allocation[start..<start + length]),
                    keeping: Owner())
                start += length + 16
            }
            buffer = lease.buffer
        }

        var all: [UInt8] { Array(allocation) }

        deinit { allocation.deallocate() }
    }

    private let block = (0..<100).map { UInt8($0) }

    private func difference(
        _ buffer: TransferBuffer, from block: [UInt8]
    ) -> (offset: Int, byte: UInt8)? {
        buffer.firstDifference(from: block.span)
    }

    private func expected(_ count: Int) -> [UInt8] { (0..<count).map { UInt8($0 % 100) } }

    static let shapes = [[1], [99], [100], [101], [64, 64, 64], [7, 300, 1, 1, 250], [1000]]

    @Test(arguments: shapes)
    func `a block is repeated over all segments`(segments: [Int]) {
        let memory = Memory(segments)
        let count = memory.buffer.count
        memory.buffer.fill(count, repeating: block.span)
        #expect(memory.buffer.bytes() == expected(count))
        #expect(memory.all.count { $0 == 0xee } == 16 * segments.count)
        #expect(difference(memory.buffer, from: block) == nil)
    }

    @Test(arguments: shapes)
    func `a difference is found at each offset`(segments: [Int]) {
        let memory = Memory(segments)
        let count = memory.buffer.count
        for offset in 0..<count {
            memory.buffer.fill(count, repeating: block.span)
            memory.buffer.copy(from: [0xfe], at: offset)
            let found = difference(memory.buffer, from: block)
            #expect(found?.offset == offset && found?.byte == 0xfe)
        }
    }

    @Test(arguments: [0, 1, 150, 172, 5000])
    func `filling ends at the wanted count and at the end of the buffer`(count: Int) {
        let memory = Memory([100, 72])
        memory.buffer.fill(count, repeating: block.span)
        let filled = min(count, 172)
        #expect(Array(memory.buffer.bytes().prefix(filled)) == expected(filled))
        #expect(memory.buffer.bytes().dropFirst(filled).allSatisfy { $0 == 0xee })
        let other = Memory([100, 72])
        other.buffer.fill(count, with: 3)
        #expect(other.buffer.bytes().count { $0 == 3 } == filled)
        #expect(other.all.count { $0 == 3 } == filled)
    }

    @Test func `an empty block writes nothing and differs from no buffer`() {
        let memory = Memory([10])
        let nothing: [UInt8] = []
        memory.buffer.fill(10, repeating: nothing.span)
        #expect(memory.buffer.bytes().allSatisfy { $0 == 0xee })
        #expect(difference(memory.buffer, from: []) == nil)
        #expect(difference(TransferBuffer(), from: block) == nil)
    }

    @Test func `bytes are copied to a range, up to the shorter of both`() {
        let memory = Memory([3, 5])
        memory.buffer.copy(from: [1, 2, 3, 4, 5, 6, 7, 8])
        var target = [UInt8](repeating: 0, count: 10)
        var span = target.mutableSpan
        let counts = [
            memory.buffer.copy(to: &span, 2..<6, from: 1),
            memory.buffer.copy(to: &span, 8..<90, from: 6),
            memory.buffer.copy(to: &span, 0..<1, from: 8),
        ]
        #expect(counts == [4, 2, 0])
        #expect(target == [0, 0, 2, 3, 4, 5, 0, 0, 7, 8])
    }
}
