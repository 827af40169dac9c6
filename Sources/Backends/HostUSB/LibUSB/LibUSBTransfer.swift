// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import Glibc
internal import USB

/// A reusable `libusb_transfer` and the memory for its data.
///
/// libusb retains this object from submission to callback, so it is not freed while the kernel uses
/// it.
@safe
final class LibUSBTransfer {
    /// libusb's structure for the transfer.
    let raw: UnsafeMutablePointer<libusb_transfer>
    /// Retained, because the context must outlive its transfers.
    private let context: LibUSBContext
    private let memory: TransferMemory
    /// The memory of the current transfer; `nil` if it has no data or uses guest memory.
    private var block: TransferMemory.Block?
    /// Whether ``cancel()`` was called since the last ``prepare(_:to:packets:)``.
    private(set) var isCancelled = false

    /// Called on the loop after libusb has completed the transfer.
    var whenEnded: (() -> Void)?

    /// - Parameter packets: the number of isochronous packets to allocate.
    init(
        context: LibUSBContext, memory: TransferMemory, packets: Int = 0
    ) throws(LibUSBError) {
        guard let raw = unsafe libusb_alloc_transfer(CInt(packets)) else { throw .noMemory }
        unsafe self.raw = unsafe raw
        self.context = context
        self.memory = memory
    }

    deinit { unsafe libusb_free_transfer(raw) }

    /// Describes a transfer without data and without a timeout.
    func prepare(_ type: libusb_transfer_type, to endpoint: EndpointAddress, packets: Int = 0) {
        unsafe raw.pointee.flags = 0
        unsafe raw.pointee.timeout = 0
        unsafe raw.pointee.type = UInt8(type.rawValue)
        unsafe raw.pointee.endpoint = endpoint.rawValue
        unsafe raw.pointee.num_iso_packets = CInt(packets)
        unsafe raw.pointee.buffer = nil
        unsafe raw.pointee.length = 0
        unsafe raw.pointee.callback = { raw in
            guard let raw = unsafe raw, let data = unsafe raw.pointee.user_data else { return }
            let transfer = unsafe Unmanaged<LibUSBTransfer>.fromOpaque(data).takeRetainedValue()
            transfer.context.queueEnd(of: transfer)
        }
        isCancelled = false
    }

    /// Submits the transfer to the kernel; ``whenEnded`` follows unless this throws.
    func submit(to handle: LibUSBHandle.Pointer) throws(LibUSBError) {
        unsafe raw.pointee.dev_handle = handle.raw
        unsafe raw.pointee.user_data = Unmanaged.passRetained(self).toOpaque()
        do throws(LibUSBError) {
            try submission { unsafe libusb_submit_transfer(raw) }
        } catch {
            unsafe Unmanaged.passUnretained(self).release()
            throw error
        }
    }

    /// Asks the kernel to end the transfer early; has no effect if the transfer has ended.
    func cancel() {
        guard !isCancelled else { return }
        isCancelled = true
        _ = unsafe libusb_cancel_transfer(raw)
    }

    // MARK: - Memory

    /// Makes the transfer use `count` bytes of ``TransferMemory``, with arbitrary content.
    func useBlock(of count: Int) throws(LibUSBError) {
        let block = try memory.block(of: count)
        self.block = block
        unsafe raw.pointee.buffer = block.bytes.baseAddress
        unsafe raw.pointee.length = CInt(count)
    }

    /// Makes the transfer use guest memory. The kernel copies the data at submission and does not
    /// access the memory later.
    func useGuestMemory(_ bytes: UnsafeMutableRawBufferPointer) throws(LibUSBError) {
        guard let count = CInt(exactly: bytes.count) else { throw .invalidParameter }
        unsafe raw.pointee.buffer = bytes.baseAddress?.assumingMemoryBound(to: UInt8.self)
        unsafe raw.pointee.length = count
    }

    /// Writes a setup packet to the beginning of the block.
    func store(_ setup: SetupPacket) {
        guard let block else { return }
        unsafe UnsafeMutableRawBufferPointer(block.bytes)
            .storeBytes(of: setup.wire.littleEndian, as: UInt64.self)
    }

    /// Copies the first `count` bytes of a buffer into the block, from `offset` on.
    ///
    /// - Throws: ``LibUSBError/invalidParameter`` if the buffer has fewer bytes or is revoked.
    func gather(
        _ count: Int, from buffer: TransferBuffer, at offset: Int = 0
    ) throws(LibUSBError) {
        guard let block else { throw .invalidParameter }
        let target = unsafe UnsafeMutableRawBufferPointer(block.bytes)
        let copied = unsafe buffer.copy(
            into: UnsafeMutableRawBufferPointer(rebasing: target[offset..<offset + count]))
        guard copied == count else { throw .invalidParameter }
    }

    /// Copies `count` bytes of the block, from `offset` on, to the beginning of a buffer. Does
    /// nothing without a block.
    func scatter(_ count: Int, from offset: Int = 0, to buffer: TransferBuffer) {
        guard let block else { return }
        let end = unsafe min(offset + count, block.bytes.count)
        let source = unsafe UnsafeRawBufferPointer(block.bytes)
        unsafe buffer.copy(from: UnsafeRawBufferPointer(rebasing: source[offset..<end]))
    }

    /// Returns the block to ``TransferMemory``.
    func releaseBlock() {
        if let block { memory.recycle(block) }
        block = nil
    }
}

/// Makes a libusb call that submits a transfer.
///
/// libusb reports ENOMEM as `LIBUSB_ERROR_NO_MEM` for bulk and interrupt transfers only. This
/// function does so for all transfers.
func submission(_ call: () -> CInt) throws(LibUSBError) {
    errno = 0
    let result = call()
    let cause = errno
    if result >= 0 { return }
    let error = LibUSBError(rawValue: result)
    throw error == .inputOutput && cause == ENOMEM ? .noMemory : error
}

extension Transfer.Status {
    /// The status that corresponds to libusb's.
    init(_ status: libusb_transfer_status) {
        switch status {
        case LIBUSB_TRANSFER_COMPLETED: self = .completed
        case LIBUSB_TRANSFER_STALL: self = .stalled
        case LIBUSB_TRANSFER_OVERFLOW: self = .babbled
        case LIBUSB_TRANSFER_CANCELLED: self = .cancelled
        case LIBUSB_TRANSFER_NO_DEVICE: self = .disconnected
        default: self = .failed
        }
    }
}
