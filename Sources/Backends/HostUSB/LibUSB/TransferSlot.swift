// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import USB

/// A reusable libusb transfer for a control, bulk or interrupt transfer of the guest.
///
/// The kernel copies OUT data at submission, so it reads a buffer of one segment directly from
/// guest memory, up to ``longestRequest``. Other data goes through ``TransferMemory``:
///
/// - IN data: the kernel writes it when libusb reaps the request, and the controller may have
///   revoked the guest's memory by then.
/// - Data of control transfers, which must follow the setup packet in memory.
/// - Buffers of several segments, because usbfs takes one pointer.
@safe
final class TransferSlot {
    private static let setupSize = 8

    private let request: LibUSBTransfer
    /// Bytes of the longest OUT transfer that libusb submits as one request; see
    /// ``SystemFiles/longestRequest(of:)``.
    private let longestRequest: Int

    /// The transfer in flight.
    private(set) var transfer: Transfer?

    /// Called on the loop when the submitted transfer has ended and the slot can be reused.
    var whenFinished: ((TransferSlot, Transfer, Transfer.Completion) -> Void)?

    init(
        context: LibUSBContext, memory: TransferMemory, longestRequest: Int = .max
    ) throws(LibUSBError) {
        request = try LibUSBTransfer(context: context, memory: memory)
        self.longestRequest = longestRequest
        request.whenEnded = { [weak self] in self?.finish() }
    }

    /// Whether ``cancel()`` was called for the transfer.
    var isCancelled: Bool { request.isCancelled }

    /// Starts a transfer; ``whenFinished`` follows unless this throws.
    func submit(_ transfer: Transfer, on handle: LibUSBHandle.Pointer) throws(LibUSBError) {
        do throws(LibUSBError) {
            try prepare(transfer)
            try request.submit(to: handle)
        } catch {
            release()
            throw error
        }
    }

    /// Cancels the transfer; has no effect if it has ended.
    func cancel() { request.cancel() }

    /// Completes the transfer with libusb's result.
    func finish() {
        guard let transfer else { return }
        let completion = completion(of: transfer)
        release()
        whenFinished?(self, transfer, completion)
    }

    // MARK: - Submission

    /// Describes the transfer to libusb.
    func prepare(_ transfer: Transfer) throws(LibUSBError) {
        switch transfer.kind {
        case .control(let setup): try prepareControl(transfer, setup)
        case .bulk(let stream) where stream != 0:
            request.prepare(LIBUSB_TRANSFER_TYPE_BULK_STREAM, to: transfer.endpoint)
            unsafe libusb_transfer_set_stream_id(request.raw, UInt32(stream))
            try prepareData(of: transfer)
        case .bulk:
            request.prepare(LIBUSB_TRANSFER_TYPE_BULK, to: transfer.endpoint)
            try prepareData(of: transfer)
        case .interrupt:
            request.prepare(LIBUSB_TRANSFER_TYPE_INTERRUPT, to: transfer.endpoint)
            try prepareData(of: transfer)
        case .isochronous: throw .invalidParameter
        }
        self.transfer = transfer
    }

    private func prepareControl(_ transfer: Transfer, _ setup: SetupPacket) throws(LibUSBError) {
        var setup = setup
        if setup.direction == .in {
            setup.length = min(setup.length, UInt16(HostUSBLimits.controlBytes))
        }
        let count = Int(setup.length)
        guard count <= HostUSBLimits.controlBytes else { throw .invalidParameter }
        request.prepare(LIBUSB_TRANSFER_TYPE_CONTROL, to: transfer.endpoint)
        try request.useBlock(of: Self.setupSize + count)
        request.store(setup)
        // The device would wait for missing bytes.
        if setup.direction == .out {
            try request.gather(count, from: transfer.buffer, at: Self.setupSize)
        }
    }

    private func prepareData(of transfer: Transfer) throws(LibUSBError) {
        let buffer = transfer.buffer
        let count = buffer.count
        if count == 0 { return }
        if transfer.direction == .in { return try request.useBlock(of: count) }
        if let bytes = unsafe buffer.contiguousBytes, count <= longestRequest {
            return unsafe try request.useGuestMemory(bytes)
        }
        try request.useBlock(of: count)
        try request.gather(count, from: buffer)
    }

    // MARK: - Completion

    private func completion(of transfer: Transfer) -> Transfer.Completion {
        var status = Transfer.Status(unsafe request.raw.pointee.status)
        var transferred = unsafe max(0, Int(request.raw.pointee.actual_length))
        if transferred > transfer.buffer.count {
            // The `wLength` of a control read was larger than the guest's buffer.
            transferred = transfer.buffer.count
            if status == .completed { status = .babbled }
        }
        if transfer.direction == .in {
            var offset = 0
            if case .control = transfer.kind { offset = Self.setupSize }
            request.scatter(transferred, from: offset, to: transfer.buffer)
        }
        return transfer.completion(status, transferred: transferred)
    }

    private func release() {
        transfer = nil
        request.releaseBlock()
    }

    /// Gives a test that acts as the kernel access to libusb's structure.
    func withRaw(_ body: (UnsafeMutablePointer<libusb_transfer>) -> Void) {
        unsafe body(request.raw)
    }
}
