// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import USB

/// A reusable libusb transfer for consecutive isochronous transfers of one endpoint, a packet each.
///
/// usbfs takes one pointer for all packets, so the data goes through ``TransferMemory``.
@safe
final class IsochronousBatch {
    private let request: LibUSBTransfer
    private let packets: UnsafeMutablePointer<libusb_iso_packet_descriptor>

    /// The transfers in flight, oldest first.
    private(set) var transfers: [Transfer] = []

    /// Called on the loop when the batch has ended and can be reused, with the completion of each
    /// of its transfers.
    var whenFinished: ((IsochronousBatch, [(Transfer, Transfer.Completion)]) -> Void)?

    init(context: LibUSBContext, memory: TransferMemory) throws(LibUSBError) {
        request = try LibUSBTransfer(
            context: context, memory: memory, packets: HostUSBLimits.packetsPerRequest)
        guard let packets = unsafe usbvfiod_iso_packets(request.raw) else { throw .noMemory }
        unsafe self.packets = unsafe packets
        request.whenEnded = { [weak self] in self?.finish() }
    }

    /// Whether ``cancel()`` was called for the batch.
    var isCancelled: Bool { request.isCancelled }

    /// Starts up to ``HostUSBLimits/packetsPerRequest`` transfers of one endpoint; ``whenFinished``
    /// follows unless this throws.
    func submit(_ transfers: [Transfer], on handle: LibUSBHandle.Pointer) throws(LibUSBError) {
        do throws(LibUSBError) {
            try prepare(transfers)
            try request.submit(to: handle)
        } catch {
            release()
            throw error
        }
    }

    /// Cancels the whole batch.
    func cancel() { request.cancel() }

    /// Completes the transfers with libusb's results.
    func finish() {
        guard !transfers.isEmpty else { return }
        let completions = completions()
        release()
        whenFinished?(self, completions)
    }

    // MARK: - Submission

    /// Describes the batch to libusb.
    func prepare(_ transfers: [Transfer]) throws(LibUSBError) {
        guard let first = transfers.first, transfers.count <= HostUSBLimits.packetsPerRequest else {
            throw .invalidParameter
        }
        request.prepare(
            LIBUSB_TRANSFER_TYPE_ISOCHRONOUS, to: first.endpoint, packets: transfers.count)
        try request.useBlock(of: transfers.reduce(0) { $0 + $1.buffer.count })
        var offset = 0
        for (index, transfer) in transfers.enumerated() {
            let count = transfer.buffer.count
            unsafe packets[index] = libusb_iso_packet_descriptor(
                length: UInt32(count), actual_length: 0, status: LIBUSB_TRANSFER_COMPLETED)
            if transfer.direction == .out {
                try request.gather(count, from: transfer.buffer, at: offset)
            }
            offset += count
        }
        self.transfers = transfers
    }

    // MARK: - Completion

    private func completions() -> [(Transfer, Transfer.Completion)] {
        let whole = unsafe Transfer.Status(request.raw.pointee.status)
        var offset = 0
        return transfers.enumerated().map { index, transfer in
            let packet = unsafe packets[index]
            let room = transfer.buffer.count
            let status = status(of: packet, whole: whole)
            var transferred = min(Int(packet.actual_length), room)
            // Some controllers do not count OUT bytes. A packet is sent as a whole or not at all.
            if transfer.direction == .out { transferred = status == .completed ? room : 0 }
            if transfer.direction == .in {
                request.scatter(transferred, from: offset, to: transfer.buffer)
            }
            offset += room
            return (transfer, transfer.completion(status, transferred: transferred))
        }
    }

    /// The status of one packet. In a batch that ended early, the kernel marks packets that it did
    /// not reach as completed with 0 bytes.
    private func status(
        of packet: libusb_iso_packet_descriptor, whole: Transfer.Status
    ) -> Transfer.Status {
        let own = Transfer.Status(packet.status)
        if whole == .completed {
            // An isochronous endpoint cannot halt, so a STALL is an error of this packet only.
            return own == .stalled || own == .cancelled ? .failed : own
        }
        if own == .completed && packet.actual_length > 0 { return .completed }
        switch whole {
        case .disconnected: return .disconnected
        case .cancelled where isCancelled: return .cancelled
        default: return .failed
        }
    }

    private func release() {
        transfers = []
        request.releaseBlock()
    }

    /// Gives a test that acts as the kernel access to libusb's structures.
    func withRaw(
        _ body: (
            UnsafeMutablePointer<libusb_transfer>,
            UnsafeMutablePointer<libusb_iso_packet_descriptor>
        ) -> Void
    ) { unsafe body(request.raw, packets) }
}
