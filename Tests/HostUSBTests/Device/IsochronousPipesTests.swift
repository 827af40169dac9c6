// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing
import USB

@testable import HostUSB

/// The collection of transfers into batches. The tests act as libusb.
final class IsochronousPipesTests {
    let loop = ManualLoop()
    let pipes: IsochronousPipes
    private let kernel = Kernel()
    private let results = Results()

    private final class Kernel {
        var batches: [(batch: IsochronousBatch, ids: [UInt64])] = []
        /// The errors of the next submissions.
        var errors: [LibUSBError] = []
    }

    private final class Results {
        var ended: [String] = []
        var refusals: [LibUSBError] = []
    }

    init() throws {
        let context = try LibUSBContext(loop: loop)
        let kernel = kernel
        let results = results
        pipes = IsochronousPipes(loop: loop) { () throws(LibUSBError) in
            try IsochronousBatch(context: context, memory: TransferMemory())
        } submit: { (batch, transfers) throws(LibUSBError) in
            if !kernel.errors.isEmpty { throw kernel.errors.removeFirst() }
            try batch.prepare(transfers)
            kernel.batches.append((batch, transfers.map(\.id.rawValue)))
        }
        pipes.whenEnded = { results.ended.append("\($1.id.rawValue) \($1.status)") }
        pipes.whenRefused = { error, _ in results.refusals.append(error) }
    }

    private func start(_ ids: ClosedRange<UInt64>, _ endpoint: EndpointAddress = .init(1, .in)) {
        for id in ids {
            pipes.start(
                Transfer(
                    id: .init(rawValue: id), endpoint: endpoint, kind: .isochronous,
                    buffer: Bytes([0]).buffer))
        }
    }

    /// The batches that were submitted since the last call.
    private func take() -> [[UInt64]] {
        defer { kernel.batches = [] }
        return kernel.batches.map(\.ids)
    }

    private func turn() { loop.advance(by: .zero) }

    @Test func `the transfers of one turn are spread over a few batches`() {
        start(1...8)
        #expect(take() == [])
        turn()
        #expect(take() == [[1, 2], [3, 4], [5, 6], [7, 8]])
        #expect(!pipes.isIdle)
    }

    @Test func `a single transfer waits for no other`() {
        start(1...1)
        turn()
        #expect(take() == [[1]])
    }

    @Test func `a batch has a maximum size`() {
        start(1...256)
        turn()
        #expect(take().map(\.count) == [UInt64](repeating: 32, count: 8).map { Int($0) })
    }

    @Test func `endpoints and directions do not mix`() {
        start(1...1, .init(1, .in))
        start(2...2, .init(1, .out))
        start(3...3, .init(2, .in))
        turn()
        #expect(take().map(Set.init) == [[2], [1], [3]])
    }

    @Test func `in the steady state batches keep their size`() {
        start(1...8)
        turn()
        var queue = kernel.batches
        _ = take()
        for round in 0..<6 as Range<UInt64> {
            queue.removeFirst().batch.finish()
            start((9 + 2 * round)...(10 + 2 * round))
            turn()
            queue += kernel.batches
            #expect(take() == [[9 + 2 * round, 10 + 2 * round]])
        }
        #expect(results.ended.count == 12)
    }

    @Test func `a waiting transfer is cancelled in the next turn`() {
        start(1...2)
        #expect(pipes.cancel(.init(rawValue: 1)))
        #expect(results.ended == [])
        turn()
        #expect(results.ended == ["1 cancelled"])
        #expect(take() == [[2]])
        #expect(!pipes.cancel(.init(rawValue: 1)))
        #expect(pipes.cancel(.init(rawValue: 2)))
    }

    @Test func `all transfers are cancelled without another turn`() {
        start(1...2)
        pipes.cancelAll()
        #expect(results.ended == ["1 cancelled", "2 cancelled"])
        #expect(pipes.isIdle)
    }

    @Test func `without memory of the kernel the rest waits for the end of a batch`() {
        start(1...1)
        turn()
        let first = kernel.batches.removeFirst()
        kernel.errors = [.noMemory]
        start(2...3)
        turn()
        #expect(take() == [])
        #expect(results.refusals == [])
        first.batch.finish()
        turn()
        #expect(take() == [[2], [3]])
    }

    @Test func `without memory and without a batch in flight transfers fail, which is reported`() {
        kernel.errors = [.noMemory]
        start(1...1)
        turn()
        #expect(results.ended == ["1 failed"])
        #expect(results.refusals == [.noMemory])
        #expect(pipes.isIdle)
    }

    @Test func `transfers of a disconnected device end as disconnected`() {
        kernel.errors = [.noDevice]
        start(1...1)
        turn()
        #expect(results.ended == ["1 disconnected"])
    }
}
