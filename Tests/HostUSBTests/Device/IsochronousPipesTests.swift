// SPDX-License-Identifier: Apache-2.0

import CLibUSB
import Platform
import Testing
import USB

@testable import HostUSB

/// The libusb transfer that a batch describes, and the completions it makes of libusb's results, with
/// the test as the kernel.
struct IsochronousBatchTests {
    let batch: IsochronousBatch

    init() throws {
        batch = try IsochronousBatch(
            context: LibUSBContext(loop: ManualLoop()), memory: TransferMemory())
    }

    private func transfer(
        _ id: UInt64, _ direction: Direction, _ buffer: TransferBuffer
    ) -> Transfer {
        Transfer(
            id: .init(rawValue: id), endpoint: EndpointAddress(3, direction), kind: .isochronous,
            buffer: buffer)
    }

    /// Ends the prepared batch as the kernel would, each packet with its status and count.
    private func end(
        _ whole: libusb_transfer_status = LIBUSB_TRANSFER_COMPLETED,
        _ packets: (libusb_transfer_status, UInt32)...
    ) -> [String] {
        var found: [String] = []
        batch.whenFinished = { _, answers in
            found = answers.map { "\($0.1.id.rawValue) \($0.1.status) \($0.1.transferred)" }
        }
        batch.withRaw { raw, descriptors in
            raw.pointee.status = whole
            for (index, packet) in packets.enumerated() {
                descriptors[index].status = packet.0
                descriptors[index].actual_length = packet.1
            }
        }
        batch.finish()
        return found
    }

    @Test func `each transfer is a packet of its own length`() throws {
        let parts = [Bytes([1, 2, 3]), Bytes([4]), Bytes([5, 6])]
        try batch.prepare([
            transfer(1, .out, parts[0].buffer), transfer(2, .out, TransferBuffer()),
            transfer(3, .out, Bytes.buffer([parts[1], parts[2]])),
        ])
        batch.withRaw { raw, packets in
            #expect(raw.pointee.type == UInt8(LIBUSB_TRANSFER_TYPE_ISOCHRONOUS.rawValue))
            #expect(raw.pointee.endpoint == 3)
            #expect(raw.pointee.num_iso_packets == 3)
            #expect(raw.pointee.length == 6)
            #expect((0..<3).map { packets[$0].length } == [3, 0, 3])
            #expect((0..<6).map { raw.pointee.buffer[$0] } == [1, 2, 3, 4, 5, 6])
        }
        // Not every controller counts what it sent.
        let done = LIBUSB_TRANSFER_COMPLETED
        #expect(
            end(done, (done, 3), (done, 0), (done, 0))
                == ["1 completed 3", "2 completed 0", "3 completed 3"])
    }

    @Test func `IN data goes from each packet to its own buffer`() throws {
        let parts = [Bytes([9, 9, 9]), Bytes([9, 9]), Bytes([9]), Bytes([9, 9])]
        try batch.prepare([
            transfer(1, .in, parts[0].buffer), transfer(2, .in, parts[1].buffer),
            transfer(3, .in, Bytes.buffer([parts[2], parts[3]])),
        ])
        batch.withRaw { raw, _ in
            for offset in 0..<8 { raw.pointee.buffer[offset] = UInt8(offset + 1) }
        }
        let done = LIBUSB_TRANSFER_COMPLETED
        #expect(
            end(done, (done, 1), (LIBUSB_TRANSFER_ERROR, 0), (done, 2))
                == ["1 completed 1", "2 failed 0", "3 completed 2"])
        #expect(parts.map(\.content) == [[1, 9, 9], [9, 9], [6], [7, 9]])
    }

    @Test func `a count over the room is cut`() throws {
        let bytes = Bytes([0, 0])
        try batch.prepare([transfer(1, .in, bytes.buffer)])
        #expect(
            end(LIBUSB_TRANSFER_COMPLETED, (LIBUSB_TRANSFER_OVERFLOW, .max)) == ["1 babbled 2"])
    }

    @Test func `of a cancelled batch counts what was done`() throws {
        let buffers = (0..<3).map { _ in Bytes([0, 0]).buffer }
        try batch.prepare(
            buffers.enumerated().map { transfer(UInt64($0.offset), .in, $0.element) })
        batch.cancel()
        #expect(
            end(
                LIBUSB_TRANSFER_CANCELLED, (LIBUSB_TRANSFER_COMPLETED, 2),
                (LIBUSB_TRANSFER_COMPLETED, 0), (LIBUSB_TRANSFER_ERROR, 0))
                == ["0 completed 2", "1 cancelled 0", "2 cancelled 0"])
    }

    @Test(arguments: [
        (LIBUSB_TRANSFER_CANCELLED, "failed"), (LIBUSB_TRANSFER_NO_DEVICE, "disconnected"),
        (LIBUSB_TRANSFER_ERROR, "failed"),
    ])
    func `a batch that the kernel ends by itself has failed`(
        whole: libusb_transfer_status, status: String
    ) throws {
        try batch.prepare([transfer(1, .in, Bytes([0]).buffer)])
        #expect(end(whole, (LIBUSB_TRANSFER_COMPLETED, 0)) == ["1 \(status) 0"])
    }

    @Test func `an isochronous endpoint does not stall`() throws {
        try batch.prepare([transfer(1, .out, Bytes([0]).buffer)])
        #expect(end(LIBUSB_TRANSFER_COMPLETED, (LIBUSB_TRANSFER_STALL, 0)) == ["1 failed 0"])
    }

    @Test func `a batch has a bound, and something in it`() throws {
        let many = (0..<HostUSBLimits.packetsPerRequest + 1).map {
            transfer(UInt64($0), .in, Bytes([0]).buffer)
        }
        try batch.prepare(Array(many.dropLast()))
        #expect(throws: LibUSBError.invalidParameter) { try batch.prepare(many) }
        #expect(throws: LibUSBError.invalidParameter) { try batch.prepare([]) }
    }

    @Test func `a batch is used again, and lets go of the guest's memory when it has ended`() throws
    {
        weak var memory: Bytes?
        for round in 1...2 as ClosedRange<UInt64> {
            do {
                let bytes = Bytes([UInt8](repeating: 0, count: 100 * Int(round)))
                memory = bytes
                try batch.prepare([transfer(round, .in, bytes.buffer)])
            }
            batch.cancel()
            #expect(
                end(LIBUSB_TRANSFER_CANCELLED, (LIBUSB_TRANSFER_COMPLETED, 0))
                    == ["\(round) cancelled 0"])
            #expect(memory == nil)
        }
    }
}

/// How transfers are put together, with the test as libusb.
final class IsochronousPipesTests {
    let loop = ManualLoop()
    let pipes: IsochronousPipes
    private let kernel = Kernel()
    private let results = Results()

    private final class Kernel {
        var batches: [(batch: IsochronousBatch, ids: [UInt64])] = []
        /// What the next batches are answered with.
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

    @Test func `what comes in one turn is spread over a few batches`() {
        start(1...8)
        #expect(take() == [])
        turn()
        #expect(take() == [[1, 2], [3, 4], [5, 6], [7, 8]])
        #expect(!pipes.isIdle)
    }

    @Test func `one alone is not held back`() {
        start(1...1)
        turn()
        #expect(take() == [[1]])
    }

    @Test func `a batch has its bound`() {
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

    @Test func `a transfer that waits is cancelled in the next turn`() {
        start(1...2)
        #expect(pipes.cancel(.init(rawValue: 1)))
        #expect(results.ended == [])
        turn()
        #expect(results.ended == ["1 cancelled"])
        #expect(take() == [[2]])
        #expect(!pipes.cancel(.init(rawValue: 1)))
        #expect(pipes.cancel(.init(rawValue: 2)))
    }

    @Test func `the end of everything needs no turn`() {
        start(1...2)
        pipes.cancelAll()
        #expect(results.ended == ["1 cancelled", "2 cancelled"])
        #expect(pipes.isIdle)
    }

    @Test func `without memory the rest waits for the end of a batch`() {
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

    @Test func `without memory and without hope transfers fail, and somebody says so`() {
        kernel.errors = [.noMemory]
        start(1...1)
        turn()
        #expect(results.ended == ["1 failed"])
        #expect(results.refusals == [.noMemory])
        #expect(pipes.isIdle)
    }

    @Test func `a device that is gone ends what is started on it`() {
        kernel.errors = [.noDevice]
        start(1...1)
        turn()
        #expect(results.ended == ["1 disconnected"])
    }
}
