// SPDX-License-Identifier: Apache-2.0

import CLibUSB
import Glibc
import Platform
import Testing
import USB

@testable import HostUSB

/// The libusb transfer of a slot, and the completion from libusb's result. The tests act as the
/// kernel.
struct TransferSlotTests {
    let context: LibUSBContext
    let memory = TransferMemory()
    let slot: TransferSlot

    init() throws {
        context = try LibUSBContext(loop: ManualLoop())
        slot = try TransferSlot(context: context, memory: memory)
    }

    private func transfer(
        _ endpoint: EndpointAddress, _ kind: Transfer.Kind, _ buffer: TransferBuffer
    ) -> Transfer {
        Transfer(id: .init(rawValue: 1), endpoint: endpoint, kind: kind, buffer: buffer)
    }

    /// Ends the prepared transfer as the kernel would.
    private func end(
        _ status: libusb_transfer_status = LIBUSB_TRANSFER_COMPLETED, count: Int
    ) -> Transfer.Completion? {
        var found: Transfer.Completion?
        slot.whenFinished = { _, _, completion in found = completion }
        slot.withRaw { raw in
            raw.pointee.status = status
            raw.pointee.actual_length = CInt(count)
        }
        slot.finish()
        return found
    }

    /// Writes IN data as the kernel does when libusb reaps the request.
    private func fill(_ bytes: [UInt8], at offset: Int = 0) {
        slot.withRaw { raw in
            for (index, byte) in bytes.enumerated() { raw.pointee.buffer[offset + index] = byte }
        }
    }

    @Test func `the kernel reads contiguous OUT data from the guest's memory`() throws {
        let bytes = Bytes([1, 2, 3, 4])
        try slot.prepare(transfer(EndpointAddress(1, .out), .bulk(stream: 0), bytes.buffer))
        slot.withRaw { raw in
            #expect(UnsafeMutableRawPointer(raw.pointee.buffer) == bytes.raw.baseAddress)
            #expect(raw.pointee.length == 4)
            #expect(raw.pointee.endpoint == 0x01)
            #expect(raw.pointee.type == UInt8(LIBUSB_TRANSFER_TYPE_BULK.rawValue))
            #expect(raw.pointee.timeout == 0)
        }
        let completion = end(count: 3)
        #expect(completion?.status == .completed)
        #expect(completion?.transferred == 3)
        #expect(bytes.content == [1, 2, 3, 4])
        #expect(slot.transfer == nil)
    }

    /// libusb may move data within the buffer of such a transfer after its submission.
    @Test(arguments: [16, 17])
    func `OUT data that libusb cuts into several requests is copied`(count: Int) throws {
        let slot = try TransferSlot(context: context, memory: memory, longestRequest: 16)
        let bytes = Bytes((0..<count).map { UInt8($0) })
        try slot.prepare(transfer(EndpointAddress(1, .out), .bulk(stream: 0), bytes.buffer))
        slot.withRaw { raw in
            let isGuestMemory = UnsafeMutableRawPointer(raw.pointee.buffer) == bytes.raw.baseAddress
            #expect(isGuestMemory == (count == 16))
            #expect((0..<count).map { raw.pointee.buffer[$0] } == bytes.content)
        }
    }

    @Test func `the kernel writes IN data to memory of the device, not of the guest`() throws {
        let bytes = Bytes([9, 9, 9, 9])
        try slot.prepare(transfer(EndpointAddress(1, .in), .bulk(stream: 0), bytes.buffer))
        slot.withRaw { raw in
            #expect(UnsafeMutableRawPointer(raw.pointee.buffer) != bytes.raw.baseAddress)
            #expect(raw.pointee.length == 4)
            #expect(raw.pointee.endpoint == 0x81)
        }
        fill([1, 2, 3, 4])
        #expect(bytes.content == [9, 9, 9, 9])
        let completion = end(count: 3)
        #expect(completion?.status == .completed)
        #expect(completion?.transferred == 3)
        #expect(bytes.content == [1, 2, 3, 9])
    }

    @Test func `an empty transfer has no bytes`() throws {
        try slot.prepare(transfer(EndpointAddress(1, .out), .bulk(stream: 0), TransferBuffer()))
        slot.withRaw { #expect($0.pointee.length == 0) }
        #expect(end(count: 0)?.status == .completed)
    }

    @Test func `an interrupt transfer has libusb's interrupt type`() throws {
        try slot.prepare(transfer(EndpointAddress(2, .in), .interrupt, Bytes([0]).buffer))
        slot.withRaw {
            #expect($0.pointee.type == UInt8(LIBUSB_TRANSFER_TYPE_INTERRUPT.rawValue))
        }
    }

    @Test func `a bulk transfer may belong to a stream`() throws {
        try slot.prepare(
            transfer(EndpointAddress(2, .in), .bulk(stream: 9), Bytes([0]).buffer))
        slot.withRaw {
            #expect($0.pointee.type == UInt8(LIBUSB_TRANSFER_TYPE_BULK_STREAM.rawValue))
            #expect(libusb_transfer_get_stream_id($0) == 9)
        }
    }

    @Test func `OUT data in several segments is put together`() throws {
        let parts = [Bytes([1, 2, 3]), Bytes([4]), Bytes([5, 6])]
        try slot.prepare(
            transfer(EndpointAddress(1, .out), .bulk(stream: 0), Bytes.buffer(parts)))
        slot.withRaw { raw in
            #expect(raw.pointee.length == 6)
            #expect((0..<6).map { raw.pointee.buffer[$0] } == [1, 2, 3, 4, 5, 6])
        }
        #expect(end(count: 6)?.transferred == 6)
    }

    @Test(arguments: 0...6)
    func `IN data is spread over the segments, and no more than arrived`(count: Int) throws {
        let parts = [Bytes([9, 9, 9]), Bytes([9]), Bytes([9, 9])]
        try slot.prepare(transfer(EndpointAddress(1, .in), .bulk(stream: 0), Bytes.buffer(parts)))
        fill([1, 2, 3, 4, 5, 6])
        #expect(end(count: count)?.transferred == count)
        let expected = (1...6).map { $0 <= count ? UInt8($0) : 9 }
        #expect(parts.flatMap(\.content) == expected)
    }

    @Test func `a control transfer is its setup packet and its data`() throws {
        let setup = SetupPacket(
            requestType: 0x21, request: 9, value: 0x0200, index: 1, length: 3)
        try slot.prepare(transfer(.control, .control(setup), Bytes([7, 8, 9]).buffer))
        slot.withRaw { raw in
            #expect(raw.pointee.type == UInt8(LIBUSB_TRANSFER_TYPE_CONTROL.rawValue))
            #expect(raw.pointee.length == 11)
            let expected: [UInt8] = [0x21, 9, 0, 2, 1, 0, 3, 0, 7, 8, 9]
            #expect((0..<11).map { raw.pointee.buffer[$0] } == expected)
        }
        #expect(end(count: 3)?.transferred == 3)
    }

    @Test func `the data of a control read reaches the guest`() throws {
        let parts = [Bytes([0, 0]), Bytes([0, 0])]
        let setup = SetupPacket(requestType: 0x80, request: 6, value: 0x100, index: 0, length: 4)
        try slot.prepare(transfer(.control, .control(setup), Bytes.buffer(parts)))
        fill([0x40, 0x40, 0x40, 0x40], at: 8)
        #expect(end(count: 3)?.transferred == 3)
        #expect(parts.flatMap(\.content) == [0x40, 0x40, 0x40, 0])
    }

    @Test func `a control read of more bytes than the guest's buffer has is a babble`() throws {
        let bytes = Bytes([0, 0])
        let setup = SetupPacket(requestType: 0x80, request: 6, value: 0x100, index: 0, length: 18)
        try slot.prepare(transfer(.control, .control(setup), bytes.buffer))
        fill([UInt8](repeating: 1, count: 18), at: 8)
        let completion = end(count: 18)
        #expect(completion?.status == .babbled)
        #expect(completion?.transferred == 2)
        #expect(bytes.content == [1, 1])
    }

    @Test func `a control write with less data than it announces is refused`() {
        let setup = SetupPacket(requestType: 0x21, request: 9, value: 0, index: 0, length: 3)
        #expect(throws: LibUSBError.invalidParameter) {
            try slot.prepare(transfer(.control, .control(setup), Bytes([7, 8]).buffer))
        }
        #expect(slot.transfer == nil)
    }

    @Test(
        arguments: [
            (4095, 4095), (4096, 4096), (4097, 4096), (0xffff, 4096),
        ] as [(UInt16, UInt16)])
    func `a control read asks for no more than libusb carries`(
        length: UInt16, asked: UInt16
    ) throws {
        let bytes = Bytes([UInt8](repeating: 0, count: Int(length)))
        let setup = SetupPacket(requestType: 0xc0, request: 1, value: 0, index: 0, length: length)
        try slot.prepare(transfer(.control, .control(setup), bytes.buffer))
        slot.withRaw { raw in
            #expect(raw.pointee.length == CInt(asked) + 8)
            #expect(
                [raw.pointee.buffer[6], raw.pointee.buffer[7]] == [
                    UInt8(asked & 0xff), UInt8(asked >> 8),
                ])
        }
        let completion = end(count: Int(asked))
        #expect(completion?.status == .completed)
        #expect(completion?.transferred == Int(asked))
    }

    @Test func `a control write of more than libusb carries is refused`() throws {
        func write(_ length: UInt16) throws {
            let bytes = Bytes([UInt8](repeating: 0, count: Int(length)))
            let setup = SetupPacket(
                requestType: 0x40, request: 1, value: 0, index: 0, length: length)
            try slot.prepare(transfer(.control, .control(setup), bytes.buffer))
        }
        #expect(throws: LibUSBError.invalidParameter) { try write(4097) }
        try write(4096)
        slot.withRaw { #expect($0.pointee.length == 4104) }
        #expect(end(count: 4096)?.transferred == 4096)
    }

    @Test(arguments: [
        (LIBUSB_TRANSFER_COMPLETED, Transfer.Status.completed),
        (LIBUSB_TRANSFER_STALL, .stalled), (LIBUSB_TRANSFER_OVERFLOW, .babbled),
        (LIBUSB_TRANSFER_TIMED_OUT, .failed), (LIBUSB_TRANSFER_ERROR, .failed),
        (LIBUSB_TRANSFER_CANCELLED, .cancelled), (LIBUSB_TRANSFER_NO_DEVICE, .disconnected),
        (libusb_transfer_status(rawValue: 77), .failed),
    ])
    func `libusb's status is kept`(raw: libusb_transfer_status, status: Transfer.Status) throws {
        try slot.prepare(
            transfer(EndpointAddress(1, .in), .bulk(stream: 0), Bytes([0]).buffer))
        #expect(end(raw, count: 0)?.status == status)
    }

    @Test func `a lack of memory is recognised for every kind of transfer`() {
        func failure(_ result: LibUSBError, _ cause: CInt) -> LibUSBError? {
            do throws(LibUSBError) {
                try submission {
                    errno = cause
                    return result.rawValue
                }
                return nil
            } catch {
                return error
            }
        }
        #expect(failure(.noMemory, ENOMEM) == .noMemory)
        #expect(failure(.inputOutput, ENOMEM) == .noMemory)
        #expect(failure(.inputOutput, EIO) == .inputOutput)
        #expect(failure(.noDevice, ENOMEM) == .noDevice)
        #expect(failure(LibUSBError(rawValue: 0), ENOMEM) == nil)
    }

    @Test func `revoked guest memory is not written when an IN transfer ends`() throws {
        for isScattered in [false, true] {
            let parts = [Bytes([9, 9]), Bytes([9, 9])]
            let lease = parts[0].lease
            if isScattered { lease.append(parts[1].all, keeping: parts[1]) }
            try slot.prepare(transfer(EndpointAddress(1, .in), .bulk(stream: 0), lease.buffer))
            fill([1, 2])
            lease.end()
            slot.cancel()
            #expect(end(LIBUSB_TRANSFER_CANCELLED, count: 2)?.status == .cancelled)
            #expect(parts.flatMap(\.content) == [9, 9, 9, 9])
        }
    }

    @Test func `revoked guest memory is not written by a control read`() throws {
        let bytes = Bytes([9, 9])
        let lease = bytes.lease
        let setup = SetupPacket(requestType: 0x80, request: 6, value: 0, index: 0, length: 2)
        try slot.prepare(transfer(.control, .control(setup), lease.buffer))
        fill([1, 2], at: 8)
        lease.end()
        #expect(end(count: 2)?.status == .completed)
        #expect(bytes.content == [9, 9])
    }

    @Test func `an OUT transfer completes although the guest's memory is revoked`() throws {
        let bytes = Bytes([1, 2])
        let lease = bytes.lease
        try slot.prepare(transfer(EndpointAddress(1, .out), .bulk(stream: 0), lease.buffer))
        lease.end()
        let completion = end(count: 2)
        #expect(completion?.status == .completed)
        #expect(completion?.transferred == 2)
    }

    @Test func `an OUT transfer whose memory is revoked before its submission is refused`() {
        let lease = Bytes([1, 2]).lease
        let buffer = lease.buffer
        lease.end()
        #expect(throws: LibUSBError.invalidParameter) {
            try slot.prepare(transfer(EndpointAddress(1, .out), .bulk(stream: 0), buffer))
        }
    }

    @Test func `a slot is used again`() throws {
        let setup = SetupPacket(requestType: 0x80, request: 6, value: 0, index: 0, length: 2)
        try slot.prepare(transfer(.control, .control(setup), Bytes([0, 0]).buffer))
        #expect(end(count: 2)?.transferred == 2)
        let bytes = Bytes([1, 2])
        try slot.prepare(transfer(EndpointAddress(3, .in), .bulk(stream: 0), bytes.buffer))
        #expect(end(count: 1)?.transferred == 1)
        #expect(bytes.content[1] == 2)
    }

    @Test func `a slot returns its memory, and the next transfer takes it`() throws {
        let bytes = Bytes([UInt8](repeating: 0, count: 4096))
        var blocks: [UnsafeMutableRawPointer?] = []
        for _ in 0..<3 {
            try slot.prepare(transfer(EndpointAddress(1, .in), .bulk(stream: 0), bytes.buffer))
            slot.withRaw { blocks.append($0.pointee.buffer.map { UnsafeMutableRawPointer($0) }) }
            #expect(memory.keptBytes == 0)
            _ = end(count: 0)
            #expect(memory.keptBytes == 4096)
        }
        #expect(Set(blocks).count == 1)
    }

    @Test func `a slot releases the guest's memory when its transfer has ended`() throws {
        weak var memory: Bytes?
        do {
            let bytes = Bytes([1, 2, 3])
            memory = bytes
            try slot.prepare(transfer(EndpointAddress(1, .in), .bulk(stream: 0), bytes.buffer))
        }
        slot.cancel()
        _ = end(LIBUSB_TRANSFER_CANCELLED, count: 0)
        #expect(memory == nil)
    }
}
