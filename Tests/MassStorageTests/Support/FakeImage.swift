// SPDX-License-Identifier: Apache-2.0

import Foundation
import Platform
import SystemPackage

@testable import MassStorage

/// A sparse image in memory that records operations, and that fails or hangs as a test requires.
final class FakeImage: DiskImage {
    enum Operation: Equatable, Sendable {
        case read(UInt64, Int)
        case write(UInt64, Int, durably: Bool)
        case flush
        case punch(UInt64, UInt64)
        case zero(UInt64, UInt64)
    }

    /// The result of an access without waiting.
    enum NonblockingAccess: Sendable {
        case served
        /// At most this many bytes are moved.
        case servedUpTo(Int)
        case wouldBlock
        case notSupported
    }

    struct State: Sendable {
        var blocks: [UInt64: [UInt8]] = [:]
        var nonblocking = NonblockingAccess.served
        /// The error of an operation; `nil` if it succeeds.
        var fault: @Sendable (Operation) -> Errno? = { _ in nil }
        /// Operations so far, without those that would have blocked.
        var log: [Operation] = []
        /// The limit of bytes moved in one call.
        var largestAccess = Int.max
        /// Whether an operation hangs until ``openGate()``.
        var hangs: @Sendable (Operation) -> Bool = { _ in false }
        var isGateShut = false
        /// The number of operations that hang.
        var hanging = 0
    }

    let byteCount: UInt64
    let isReadOnly: Bool
    let state = Locked(State())
    private let gate = NSCondition()

    init(byteCount: UInt64, readOnly: Bool = false) {
        self.byteCount = byteCount
        isReadOnly = readOnly
    }

    var log: [Operation] { state.withLock { $0.log } }
    var flushCount: Int { log.count { $0 == .flush } }

    func set(_ change: @Sendable (inout State) -> Void) { state.withLock { change(&$0) } }

    /// Makes operations hang until ``openGate()``, if they may wait: by default all.
    func shutGate(for operations: @escaping @Sendable (Operation) -> Bool = { _ in true }) {
        state.withLock {
            $0.hangs = operations
            $0.isGateShut = true
        }
    }

    /// Whether an operation hangs.
    var isHanging: Bool { state.withLock { $0.isGateShut && $0.hanging > 0 } }

    func openGate() {
        gate.lock()
        state.withLock {
            $0.hangs = { _ in false }
            $0.isGateShut = false
        }
        gate.broadcast()
        gate.unlock()
    }

    private func passGate(_ operation: Operation) {
        gate.lock()
        while state.withLock({ $0.hangs(operation) }) {
            state.withLock { $0.hanging += 1 }
            gate.wait()
            state.withLock { $0.hanging -= 1 }
        }
        gate.unlock()
    }

    /// The present bytes of a range.
    func bytes(at offset: UInt64, count: Int) -> [UInt8] {
        state.withLock { state in
            var result: [UInt8] = []
            result.reserveCapacity(count)
            while result.count < count {
                let position = offset + UInt64(result.count)
                let start = Int(position % 512)
                let length = min(512 - start, count - result.count)
                if let block = state.blocks[position / 512] {
                    result += block[start..<start + length]
                } else {
                    result += [UInt8](repeating: 0, count: length)
                }
            }
            return result
        }
    }

    func fill(at offset: UInt64, _ bytes: [UInt8]) {
        state.withLock { state in
            var done = 0
            while done < bytes.count {
                let position = offset + UInt64(done)
                let start = Int(position % 512)
                let length = min(512 - start, bytes.count - done)
                state.blocks[position / 512, default: [UInt8](repeating: 0, count: 512)]
                    .replaceSubrange(start..<start + length, with: bytes[done..<done + length])
                done += length
            }
        }
    }

    private func begin(_ operation: Operation, waiting: Bool) throws(Errno) -> Int {
        if waiting { passGate(operation) }
        let outcome = state.withLock { state -> (Errno?, Int) in
            var limit = state.largestAccess
            if !waiting {
                switch state.nonblocking {
                case .served: break
                case .servedUpTo(let count): limit = min(limit, count)
                case .wouldBlock: return (.wouldBlock, 0)
                case .notSupported: return (.notSupported, 0)
                }
                if state.hangs(operation) { return (.wouldBlock, 0) }
            }
            state.log.append(operation)
            return (state.fault(operation), limit)
        }
        if let error = outcome.0 { throw error }
        return outcome.1
    }

    func read(into segments: IOVectors, at offset: UInt64, waiting: Bool) throws(Errno) -> Int {
        let limit = try begin(.read(offset, segments.count), waiting: waiting)
        let part = segments.slice(from: 0, limit: limit)
        var position = offset
        part.forEachSegment { bytes in
            bytes.copyBytes(from: self.bytes(at: position, count: bytes.count))
            position += UInt64(bytes.count)
        }
        return part.count
    }

    func write(
        _ segments: IOVectors, at offset: UInt64, durably: Bool, waiting: Bool
    ) throws(Errno) -> Int {
        let limit = try begin(.write(offset, segments.count, durably: durably), waiting: waiting)
        let part = segments.slice(from: 0, limit: limit)
        var all: [UInt8] = []
        part.forEachSegment { all += $0 }
        fill(at: offset, all)
        return part.count
    }

    func flush() throws(Errno) { _ = try begin(.flush, waiting: true) }

    func punchHole(at offset: UInt64, count: UInt64) throws(Errno) {
        _ = try begin(.punch(offset, count), waiting: true)
        clear(offset, count)
    }

    func zeroRange(at offset: UInt64, count: UInt64) throws(Errno) {
        _ = try begin(.zero(offset, count), waiting: true)
        clear(offset, count)
    }

    private func clear(_ offset: UInt64, _ count: UInt64) {
        state.withLock { state in
            for block in offset / 512..<(offset + count) / 512 {
                state.blocks.removeValue(forKey: block)
            }
        }
    }
}
