// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import USB

/// Consecutive isochronous transfers of one endpoint as one transfer of libusb's, a packet each;
/// used again and again.
///
/// usbfs takes one piece of memory for all packets, so the data goes through memory of the batch's
/// own. It must not be freed before libusb has given the transfer back: while libusb has the batch,
/// the batch is retained.
@safe
final class IsochronousBatch: TransferCarrier {
    /// Packets of one batch: at eight microframes a millisecond, 4 ms.
    static let capacity = 32
    /// Own memory up to this size is kept for the next batch: what a high-speed endpoint can move.
    static let keptBytes = capacity * 3072

    let raw: UnsafeMutablePointer<libusb_transfer>
    private let packets: UnsafeMutablePointer<libusb_iso_packet_descriptor>
    /// libusb's context must outlive its transfers.
    private let context: LibUSBContext
    private var memory: UnsafeMutableRawBufferPointer
    private(set) var isCancelled = false

    /// What is in flight, in order.
    private(set) var transfers: [Transfer] = []

    /// Called on the loop when the batch has ended and is free again, with an answer to each of its
    /// transfers.
    var whenFinished: ((IsochronousBatch, [(Transfer, Transfer.Completion)]) -> Void)?

    init(context: LibUSBContext) throws(LibUSBError) {
        guard let raw = unsafe libusb_alloc_transfer(CInt(Self.capacity)),
            let packets = unsafe usbvfiod_iso_packets(raw)
        else { throw .noMemory }
        unsafe self.raw = unsafe raw
        unsafe self.packets = unsafe packets
        self.context = context
        unsafe memory = UnsafeMutableRawBufferPointer(start: nil, count: 0)
    }

    deinit {
        unsafe libusb_free_transfer(raw)
        unsafe memory.deallocate()
    }

    /// Starts up to ``capacity`` transfers of one endpoint; ``whenFinished`` follows unless this
    /// throws.
    func submit(_ transfers: [Transfer], on handle: LibUSBHandle.Pointer) throws(LibUSBError) {
        try prepare(transfers)
        do throws(LibUSBError) { try handOver(to: handle) } catch {
            release()
            throw error
        }
    }

    /// Asks for an early end of all of it.
    func cancel() {
        guard !isCancelled else { return }
        isCancelled = true
        _ = unsafe libusb_cancel_transfer(raw)
    }

    func finish() {
        guard !transfers.isEmpty else { return }
        let answers = answers()
        release()
        whenFinished?(self, answers)
    }

    // MARK: - There

    /// Describes the batch to libusb.
    func prepare(_ transfers: [Transfer]) throws(LibUSBError) {
        guard let first = transfers.first, transfers.count <= Self.capacity else {
            throw .invalidParameter
        }
        let count = transfers.reduce(0) { $0 + $1.buffer.count }
        try provideMemory(count)
        unsafe raw.pointee.flags = 0
        unsafe raw.pointee.timeout = 0
        unsafe raw.pointee.endpoint = first.endpoint.rawValue
        unsafe raw.pointee.type = UInt8(LIBUSB_TRANSFER_TYPE_ISOCHRONOUS.rawValue)
        unsafe raw.pointee.buffer = memory.baseAddress?.assumingMemoryBound(to: UInt8.self)
        unsafe raw.pointee.length = CInt(count)
        unsafe raw.pointee.num_iso_packets = CInt(transfers.count)
        unsafe raw.pointee.callback = { raw in
            guard let raw = unsafe raw, let data = unsafe raw.pointee.user_data else { return }
            let batch = unsafe Unmanaged<IsochronousBatch>.fromOpaque(data).takeRetainedValue()
            batch.context.note(ended: batch)
        }
        var place = 0
        for (index, transfer) in transfers.enumerated() {
            unsafe packets[index] = libusb_iso_packet_descriptor(
                length: UInt32(transfer.buffer.count), actual_length: 0,
                status: LIBUSB_TRANSFER_COMPLETED)
            unsafe transfer.buffer.forEachSegment { segment in
                if transfer.direction == .out {
                    unsafe UnsafeMutableRawBufferPointer(rebasing: memory[place...]).copyMemory(
                        from: UnsafeRawBufferPointer(segment))
                }
                place += segment.count
            }
        }
        self.transfers = transfers
        isCancelled = false
    }

    private func provideMemory(_ count: Int) throws(LibUSBError) {
        guard count <= TransferSlot.largestBounce else { throw .invalidParameter }
        if unsafe memory.count < count || memory.baseAddress == nil {
            unsafe memory.deallocate()
            unsafe memory = .allocate(byteCount: max(count, 1), alignment: 16)
            // What the device does not fill must not be left from some earlier owner of the bytes.
            unsafe memory.initializeMemory(as: UInt8.self, repeating: 0)
        }
    }

    // MARK: - And back

    private func answers() -> [(Transfer, Transfer.Completion)] {
        let whole = unsafe Transfer.Status(raw.pointee.status)
        var place = 0
        return transfers.enumerated().map { index, transfer in
            let packet = unsafe packets[index]
            let room = transfer.buffer.count
            let status = status(of: packet, whole: whole)
            var moved = min(Int(packet.actual_length), room)
            // Not every controller counts what it sent, which is all of a packet or nothing.
            if transfer.direction == .out { moved = status == .completed ? room : 0 }
            if transfer.direction == .in { scatter(moved, from: place, to: transfer) }
            place += room
            return (transfer, transfer.completion(status, transferred: moved))
        }
    }

    /// How one packet ended. In a batch that ended early the kernel marks what it did not reach as
    /// done, with no bytes.
    private func status(
        of packet: libusb_iso_packet_descriptor, whole: Transfer.Status
    ) -> Transfer.Status {
        let own = Transfer.Status(packet.status)
        if whole == .completed {
            // An isochronous endpoint does not halt, whatever a host's driver calls the mishap.
            return own == .stalled || own == .cancelled ? .failed : own
        }
        if own == .completed && packet.actual_length > 0 { return .completed }
        switch whole {
        case .disconnected: return .disconnected
        case .cancelled where isCancelled: return .cancelled
        default: return .failed
        }
    }

    private func scatter(_ count: Int, from start: Int, to transfer: Transfer) {
        var place = start
        unsafe transfer.buffer.slice(from: 0, count: count).forEachSegment { segment in
            unsafe segment.copyMemory(
                from: UnsafeRawBufferPointer(rebasing: memory[place..<place + segment.count]))
            place += segment.count
        }
    }

    private func release() {
        transfers = []
        if unsafe memory.count > Self.keptBytes {
            unsafe memory.deallocate()
            unsafe memory = UnsafeMutableRawBufferPointer(start: nil, count: 0)
        }
    }

    /// libusb's half of the batch, for tests that play the kernel.
    func withRaw(
        _ body: (
            UnsafeMutablePointer<libusb_transfer>,
            UnsafeMutablePointer<libusb_iso_packet_descriptor>
        ) -> Void
    ) { unsafe body(raw, packets) }
}
