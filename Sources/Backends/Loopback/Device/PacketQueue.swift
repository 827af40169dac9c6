// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The loopback queue of configuration 2, which takes data from the OUT endpoint to the IN
/// endpoint.
///
/// The queue is a ring of bytes and a list of the positions at which short packets end. An IN
/// transfer completes when its buffer is full, or at the end of a short packet, which may be a
/// zero-length packet. The ring does not mark the ends of full-size packets.
struct PacketQueue {
    /// A short packet.
    private struct ShortPacket {
        /// The end of the packet, as a value of `written`.
        var end: Int
        /// Whether it is a zero-length packet, which is sent after all bytes before it.
        var isEmpty: Bool
    }

    private var bytes: [UInt8]
    /// Bytes written to the ring since it was last emptied.
    private var written = 0
    /// Bytes read from the ring since it was last emptied.
    private var read = 0
    private var shortPackets: [ShortPacket] = []
    private let maxPacketSize: Int
    /// A counter that every change of the queue increments.
    private(set) var changes: UInt64 = 0

    init(capacity: Int = LoopbackLimits.loopedBytes, maxPacketSize: Int) {
        bytes = Array(repeating: 0, count: capacity)
        self.maxPacketSize = max(maxPacketSize, 1)
        shortPackets.reserveCapacity(LoopbackLimits.loopedShortPackets)
    }

    mutating func removeAll() {
        written = 0
        read = 0
        shortPackets.removeAll(keepingCapacity: true)
        changes &+= 1
    }

    /// Writes the data of an OUT transfer from offset `moved` on, until the queue is full.
    ///
    /// - Parameter wrong: the offset of a byte to invert.
    /// - Returns: whether the transfer is complete.
    mutating func put(
        _ buffer: TransferBuffer, moved: inout Int, inverting wrong: Int? = nil
    ) -> Bool {
        while moved < buffer.count {
            let start = written % bytes.count
            let room = min(bytes.count - (written - read), bytes.count - start)
            let length = min(room, buffer.count - moved)
            guard length > 0 else { return false }
            var span = bytes.mutableSpan
            buffer.copy(to: &span, start..<start + length, from: moved)
            if let wrong, (moved..<moved + length).contains(wrong) {
                bytes[start + wrong - moved] ^= 0xff
            }
            written += length
            moved += length
            changes &+= 1
        }
        guard buffer.count % maxPacketSize != 0 || buffer.count == 0 else { return true }
        guard shortPackets.count < LoopbackLimits.loopedShortPackets else { return false }
        shortPackets.append(ShortPacket(end: written, isEmpty: buffer.count == 0))
        changes &+= 1
        return true
    }

    /// Reads data for an IN transfer until it has `limit` bytes, `moved` of which it has already.
    ///
    /// - Returns: whether the transfer is complete.
    mutating func take(into buffer: TransferBuffer, moved: inout Int, limit: Int) -> Bool {
        while true {
            let packet = shortPackets.first
            let start = read % bytes.count
            let length = min((packet?.end ?? written) - read, bytes.count - start, limit - moved)
            if length > 0 {
                buffer.copy(from: bytes.span.extracting(start..<start + length), at: moved)
                read += length
                moved += length
                changes &+= 1
            }
            if let packet, packet.end == read, !packet.isEmpty || moved < limit {
                shortPackets.removeFirst()
                changes &+= 1
                return true
            }
            if moved >= limit { return true }
            if length <= 0 { return false }
        }
    }
}
