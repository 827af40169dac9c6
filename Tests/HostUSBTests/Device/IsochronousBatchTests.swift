// SPDX-License-Identifier: Apache-2.0

import CLibUSB
import Platform
import Testing
import USB

@testable import HostUSB

/// The libusb transfer of a batch, and the completions from libusb's results. The tests act as the
/// kernel.
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
        // Some controllers do not count OUT bytes.
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

    @Test func `a count over the packet's length is cut`() throws {
        let bytes = Bytes([0, 0])
        try batch.prepare([transfer(1, .in, bytes.buffer)])
        #expect(
            end(LIBUSB_TRANSFER_COMPLETED, (LIBUSB_TRANSFER_OVERFLOW, .max)) == ["1 babbled 2"])
    }

    @Test func `in a cancelled batch the packets that were moved count`() throws {
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
    func `a batch that the kernel cancels by itself has failed`(
        whole: libusb_transfer_status, status: String
    ) throws {
        try batch.prepare([transfer(1, .in, Bytes([0]).buffer)])
        #expect(end(whole, (LIBUSB_TRANSFER_COMPLETED, 0)) == ["1 \(status) 0"])
    }

    @Test func `an isochronous endpoint does not stall`() throws {
        try batch.prepare([transfer(1, .out, Bytes([0]).buffer)])
        #expect(end(LIBUSB_TRANSFER_COMPLETED, (LIBUSB_TRANSFER_STALL, 0)) == ["1 failed 0"])
    }

    @Test func `revoked guest memory is not written when a batch ends`() throws {
        let parts = [Bytes([9]), Bytes([9])]
        let lease = parts[0].lease
        try batch.prepare([
            transfer(1, .in, lease.buffer), transfer(2, .in, parts[1].buffer),
        ])
        batch.withRaw { raw, _ in
            raw.pointee.buffer[0] = 1
            raw.pointee.buffer[1] = 2
        }
        lease.end()
        let done = LIBUSB_TRANSFER_COMPLETED
        #expect(end(done, (done, 1), (done, 1)) == ["1 completed 1", "2 completed 1"])
        #expect(parts.map(\.content) == [[9], [2]])
    }

    @Test func `a batch has 1 to 32 packets`() throws {
        let many = (0..<HostUSBLimits.packetsPerRequest + 1).map {
            transfer(UInt64($0), .in, Bytes([0]).buffer)
        }
        try batch.prepare(Array(many.dropLast()))
        #expect(throws: LibUSBError.invalidParameter) { try batch.prepare(many) }
        #expect(throws: LibUSBError.invalidParameter) { try batch.prepare([]) }
    }

    @Test func `a batch is reused, and releases the guest's memory when it has ended`() throws {
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
