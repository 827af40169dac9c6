// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import USB

/// One transfer on its way through libusb; used again and again.
///
/// The kernel is given the guest's memory itself where the transfer lies in it in one piece. A
/// control transfer needs its setup packet before the data, and usbfs takes one pointer a request,
/// so those and buffers in pieces go through memory of the slot's own.
///
/// The kernel may write until it has given the transfer back, however early it was cancelled. So
/// while libusb has the slot, the slot is retained and holds the transfer with its buffer.
@safe
final class TransferSlot: TransferCarrier {
    /// Own memory up to this size is kept for the next transfer: any control transfer fits.
    static let keptBytes = 0x10000
    /// Own memory above this size is not allocated. Pieces of one transfer that add up to more are
    /// beyond what any driver asks.
    static let largestBounce = 64 << 20

    private static let setupSize = 8

    let raw: UnsafeMutablePointer<libusb_transfer>
    /// libusb's context must outlive its transfers.
    private let context: LibUSBContext
    private var memory: UnsafeMutableRawBufferPointer
    private var usesMemory = false

    /// What is in flight.
    private(set) var transfer: Transfer?
    private(set) var isCancelled = false

    /// Called on the loop when the transfer that was submitted has ended; the slot is free again.
    var whenFinished: ((TransferSlot, Transfer, Transfer.Completion) -> Void)?

    init(context: LibUSBContext) throws(LibUSBError) {
        guard let raw = unsafe libusb_alloc_transfer(0) else { throw .noMemory }
        unsafe self.raw = unsafe raw
        self.context = context
        unsafe memory = UnsafeMutableRawBufferPointer(start: nil, count: 0)
    }

    deinit {
        unsafe libusb_free_transfer(raw)
        unsafe memory.deallocate()
    }

    /// Starts a transfer; ``whenFinished`` follows unless this throws.
    func submit(_ transfer: Transfer, on handle: LibUSBHandle.Pointer) throws(LibUSBError) {
        try prepare(transfer)
        do throws(LibUSBError) { try handOver(to: handle) } catch {
            release()
            throw error
        }
    }

    /// Asks for an early end; without effect on a transfer that has just ended.
    func cancel() {
        isCancelled = true
        _ = unsafe libusb_cancel_transfer(raw)
    }

    /// Ends the transfer with what libusb found.
    func finish() {
        guard let transfer else { return }
        let completion = completion(of: transfer)
        release()
        whenFinished?(self, transfer, completion)
    }

    /// Ends a transfer that the kernel has forgotten, so that it writes to its memory no more. libusb
    /// still has the slot, which is kept for ever and not used again.
    func abandon() -> Transfer? {
        defer { transfer = nil }
        return transfer
    }

    // MARK: - There

    /// Describes the transfer to libusb.
    func prepare(_ transfer: Transfer) throws(LibUSBError) {
        let buffer = transfer.buffer
        unsafe raw.pointee.flags = 0
        unsafe raw.pointee.timeout = 0
        unsafe raw.pointee.num_iso_packets = 0
        unsafe raw.pointee.endpoint = transfer.endpoint.rawValue
        unsafe raw.pointee.callback = { raw in
            guard let raw = unsafe raw, let data = unsafe raw.pointee.user_data else { return }
            let slot = unsafe Unmanaged<TransferSlot>.fromOpaque(data).takeRetainedValue()
            slot.context.note(ended: slot)
        }
        switch transfer.kind {
        case .control(let setup):
            unsafe raw.pointee.type = UInt8(LIBUSB_TRANSFER_TYPE_CONTROL.rawValue)
            var setup = setup
            if setup.direction == .in {
                setup.length = min(setup.length, UInt16(HostUSBLimits.controlBytes))
            }
            let count = Int(setup.length)
            guard count <= HostUSBLimits.controlBytes else { throw .invalidParameter }
            // The device would wait for bytes that nobody has.
            if setup.direction == .out && buffer.count < count { throw .invalidParameter }
            try provideMemory(Self.setupSize + count)
            unsafe memory.storeBytes(of: setup.wire.littleEndian, as: UInt64.self)
            if setup.direction == .out { gather(buffer, count: count, at: Self.setupSize) }
            useMemory(count: Self.setupSize + count)
        case .bulk, .interrupt:
            switch transfer.kind {
            case .bulk(let stream) where stream != 0:
                unsafe raw.pointee.type = UInt8(LIBUSB_TRANSFER_TYPE_BULK_STREAM.rawValue)
                unsafe libusb_transfer_set_stream_id(raw, UInt32(stream))
            case .bulk:
                unsafe raw.pointee.type = UInt8(LIBUSB_TRANSFER_TYPE_BULK.rawValue)
            default:
                unsafe raw.pointee.type = UInt8(LIBUSB_TRANSFER_TYPE_INTERRUPT.rawValue)
            }
            if buffer.segmentCount > 1 {
                try provideMemory(buffer.count)
                if transfer.direction == .out { gather(buffer, count: buffer.count, at: 0) }
                useMemory(count: buffer.count)
            } else {
                let bytes = unsafe buffer.contiguousBytes
                guard let count = CInt(exactly: buffer.count) else { throw .invalidParameter }
                unsafe raw.pointee.buffer = bytes?.baseAddress?
                    .assumingMemoryBound(to: UInt8.self)
                unsafe raw.pointee.length = count
            }
        case .isochronous:
            throw .invalidParameter
        }
        self.transfer = transfer
        isCancelled = false
    }

    private func provideMemory(_ count: Int) throws(LibUSBError) {
        guard count <= Self.largestBounce else { throw .invalidParameter }
        if unsafe memory.count < count {
            unsafe memory.deallocate()
            unsafe memory = .allocate(byteCount: count, alignment: 16)
            // What the device does not fill must not be left from some earlier owner of the bytes.
            unsafe memory.initializeMemory(as: UInt8.self, repeating: 0)
        }
    }

    private func useMemory(count: Int) {
        usesMemory = true
        unsafe raw.pointee.buffer = memory.baseAddress?.assumingMemoryBound(to: UInt8.self)
        unsafe raw.pointee.length = CInt(count)
    }

    private func gather(_ buffer: TransferBuffer, count: Int, at start: Int) {
        var place = start
        unsafe buffer.slice(from: 0, count: count).forEachSegment { segment in
            unsafe UnsafeMutableRawBufferPointer(rebasing: memory[place...]).copyMemory(
                from: UnsafeRawBufferPointer(segment))
            place += segment.count
        }
    }

    // MARK: - And back

    private func completion(of transfer: Transfer) -> Transfer.Completion {
        var status = Transfer.Status(unsafe raw.pointee.status)
        var moved = unsafe max(0, Int(raw.pointee.actual_length))
        if usesMemory && transfer.direction == .in {
            scatter(moved, to: transfer)
        }
        if moved > transfer.buffer.count {
            // A control transfer asked the device for more than the guest has room for.
            moved = transfer.buffer.count
            if status == .completed { status = .babbled }
        }
        return transfer.completion(status, transferred: moved)
    }

    private func scatter(_ count: Int, to transfer: Transfer) {
        var place = 0
        if case .control = transfer.kind { place = Self.setupSize }
        unsafe transfer.buffer.slice(from: 0, count: count).forEachSegment { segment in
            unsafe segment.copyMemory(
                from: UnsafeRawBufferPointer(rebasing: memory[place..<place + segment.count]))
            place += segment.count
        }
    }

    private func release() {
        transfer = nil
        usesMemory = false
        if unsafe memory.count > Self.keptBytes {
            unsafe memory.deallocate()
            unsafe memory = UnsafeMutableRawBufferPointer(start: nil, count: 0)
        }
    }

    /// libusb's half of the slot, for tests that play the kernel.
    func withRaw(_ body: (UnsafeMutablePointer<libusb_transfer>) -> Void) { unsafe body(raw) }
}

extension Transfer.Status {
    /// The words of libusb in those of the bus.
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
