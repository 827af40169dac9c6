// SPDX-License-Identifier: Apache-2.0

internal import USB

/// What has come OUT and not gone back IN: bytes in a ring, and where among them packets were short.
///
/// It keeps packets apart as a wire does. An IN transfer ends when it is full or with a short packet,
/// which may be an empty one; full packets follow each other without a border.
struct PacketQueue {
    /// A short packet.
    private struct End {
        /// The bytes that were ever put in until then.
        var position: Int
        /// It has no bytes, so it is a packet that still has to be sent when all before it were.
        var isEmpty: Bool
    }

    private var bytes: [UInt8]
    /// Bytes ever put in and ever taken out.
    private var written = 0
    private var read = 0
    private var ends: [End] = []
    private let maxPacketSize: Int
    /// Counts what happens, to tell whether something did.
    private(set) var changes: UInt64 = 0

    init(capacity: Int = LoopbackLimits.loopedBytes, maxPacketSize: Int) {
        bytes = Array(repeating: 0, count: capacity)
        self.maxPacketSize = max(maxPacketSize, 1)
        ends.reserveCapacity(LoopbackLimits.loopedShortPackets)
    }

    mutating func removeAll() {
        written = 0
        read = 0
        ends.removeAll(keepingCapacity: true)
        changes &+= 1
    }

    /// Puts in what an OUT transfer has from `moved` on, as far as there is room.
    ///
    /// - Parameter wrong: the offset of a byte that is to be put in inverted.
    /// - Returns: whether all of it is in.
    mutating func put(
        _ buffer: TransferBuffer, moved: inout Int, inverting wrong: Int? = nil
    ) -> Bool {
        while moved < buffer.count {
            let place = written % bytes.count
            let room = min(bytes.count - (written - read), bytes.count - place)
            let length = min(room, buffer.count - moved)
            guard length > 0 else { return false }
            var span = bytes.mutableSpan
            buffer.copy(to: &span, place..<place + length, from: moved)
            if let wrong, (moved..<moved + length).contains(wrong) {
                bytes[place + wrong - moved] ^= 0xff
            }
            written += length
            moved += length
            changes &+= 1
        }
        guard buffer.count % maxPacketSize != 0 || buffer.count == 0 else { return true }
        guard ends.count < LoopbackLimits.loopedShortPackets else { return false }
        ends.append(End(position: written, isEmpty: buffer.count == 0))
        changes &+= 1
        return true
    }

    /// Gives an IN transfer what there is for it, up to `limit` bytes in all.
    ///
    /// - Returns: whether the transfer has ended.
    mutating func take(into buffer: TransferBuffer, moved: inout Int, limit: Int) -> Bool {
        while true {
            let end = ends.first
            let place = read % bytes.count
            let length = min(
                (end?.position ?? written) - read, bytes.count - place, limit - moved)
            if length > 0 {
                buffer.copy(from: bytes.span.extracting(place..<place + length), at: moved)
                read += length
                moved += length
                changes &+= 1
            }
            if let end, end.position == read, !end.isEmpty || moved < limit {
                ends.removeFirst()
                changes &+= 1
                return true
            }
            if moved >= limit { return true }
            if length <= 0 { return false }
        }
    }
}
