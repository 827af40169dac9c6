// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The data of configuration 3: IN endpoints are sources of a pattern, OUT endpoints are sinks that
/// check it.
struct SourceSink {
    /// A byte of an OUT transfer that differs from the pattern.
    struct Mismatch {
        var offset: Int
        var byte: UInt8
    }

    private let settings: LoopbackSettings
    private let bulk: DataPattern
    private let interrupt: DataPattern
    private let isochronous: DataPattern

    init(_ settings: LoopbackSettings) {
        self.settings = settings
        bulk = DataPattern(settings.pattern, maxPacketSize: settings.bulkPacket)
        interrupt = DataPattern(settings.pattern, maxPacketSize: settings.interruptPacket)
        isochronous = DataPattern(settings.pattern, maxPacketSize: settings.isoPacket)
    }

    /// Fills the buffer of an IN transfer. An isochronous transfer gets at most the bytes of one
    /// service interval.
    ///
    /// - Returns: the number of bytes that the device sends.
    func fill(_ buffer: TransferBuffer, at pipe: Pipe, _ fault: FaultRule.Action?) -> Int {
        var count = buffer.count
        if pipe == .isoIn { count = min(count, settings.isoBytesPerInterval) }
        if case .short(let bytes) = fault { count = min(count, bytes) }
        pattern(pipe).fill(buffer, count: count)
        if case .corrupt(let offset) = fault { buffer.invert(offset, of: count) }
        return count
    }

    /// Checks an OUT transfer.
    ///
    /// - Returns: the first byte that differs; `nil` if the data is right or the device has no
    ///   pattern.
    func check(_ buffer: TransferBuffer, at pipe: Pipe, _ fault: FaultRule.Action?) -> Mismatch? {
        let pattern = pattern(pipe)
        if let (offset, byte) = pattern.firstDifference(in: buffer) {
            return Mismatch(offset: offset, byte: byte)
        }
        guard pattern.isChecked, case .corrupt(let offset) = fault, offset < buffer.count else {
            return nil
        }
        let byte = buffer.bytes(from: offset, count: 1).first ?? 0
        return Mismatch(offset: offset, byte: ~byte)
    }

    /// The number of bytes of an OUT transfer up to the end of the packet with the mismatch.
    func acceptedBytes(before mismatch: Mismatch, of count: Int, at pipe: Pipe) -> Int {
        let packet = pipe == .bulkOut ? settings.bulkPacket : settings.interruptPacket
        return min(count, (mismatch.offset / packet + 1) * packet)
    }

    private func pattern(_ pipe: Pipe) -> DataPattern {
        switch pipe {
        case .interruptIn, .interruptOut: interrupt
        case .isoIn, .isoOut: isochronous
        default: bulk
        }
    }
}

extension TransferBuffer {
    /// Inverts the byte at `offset`; does nothing if `offset` is not below `count`.
    func invert(_ offset: Int, of count: Int) {
        guard offset < count, let byte = bytes(from: offset, count: 1).first else { return }
        copy(from: [~byte], at: offset)
    }
}
