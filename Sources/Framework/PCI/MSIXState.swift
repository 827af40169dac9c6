// SPDX-License-Identifier: Apache-2.0

/// The MSI-X Table and Pending Bit Array of a function, and the vectors that can send messages
/// (PCI Local Bus 3.0, 6.8.2.6 to 6.8.2.10).
///
/// The VMM emulates MSI-X for the guest: it interprets the table that the guest writes and gives
/// the function an eventfd for each vector that is enabled. So the table here is plain memory, and
/// a vector can send if it has an eventfd and is not masked. A vector that cannot send has its
/// Pending bit set, and sends one message as soon as it can.
public struct MSIXState: Sendable {
    public let layout: MSIXLayout
    private var table: [UInt8]
    // A bit for each vector.
    private var connected: UInt64 = 0
    private var masked: UInt64 = 0
    private var pending: UInt64 = 0

    /// The state after reset, in which no vector has an eventfd.
    public init(_ layout: MSIXLayout) {
        self.layout = layout
        table = Self.resetTable(layout)
    }

    /// Requests a message.
    ///
    /// - Returns: whether to send it now. If not, the vector is pending.
    public mutating func raise(_ vector: Int) -> Bool {
        guard let bit = bit(vector) else { return false }
        if connected & ~masked & bit != 0 { return true }
        pending |= bit
        return false
    }

    /// Sets whether a vector has an eventfd.
    ///
    /// - Returns: whether to send a message now, because one was pending.
    public mutating func setConnected(_ vector: Int, _ isConnected: Bool) -> Bool {
        guard let bit = bit(vector) else { return false }
        if isConnected { connected |= bit } else { connected &= ~bit }
        return takePending(bit)
    }

    /// Masks or unmasks a vector.
    ///
    /// - Returns: whether to send a message now, because one was pending.
    public mutating func setMasked(_ vector: Int, _ isMasked: Bool) -> Bool {
        guard let bit = bit(vector) else { return false }
        if isMasked { masked |= bit } else { masked &= ~bit }
        return takePending(bit)
    }

    /// Whether a vector's Pending bit is set.
    public func isPending(_ vector: Int) -> Bool { bit(vector).map { pending & $0 != 0 } ?? false }

    /// Resets the table, and clears mask and Pending bits. The eventfds stay.
    public mutating func reset() {
        pending = 0
        masked = 0
        table = Self.resetTable(layout)
    }

    /// Reads the memory of both structures. All other bytes are zero.
    public func read(at offset: Int, into target: inout OutputSpan<UInt8>) {
        var position = offset
        while !target.isFull {
            target.append(byte(at: position))
            position &+= 1
        }
    }

    /// Writes the table. The Pending Bit Array is read-only.
    public mutating func write(at offset: Int, from source: Span<UInt8>) {
        for index in source.indices {
            let position = offset &+ index &- layout.tableOffset
            if table.indices.contains(position) { table[position] = source[index] }
        }
    }

    private func byte(at offset: Int) -> UInt8 {
        let inTable = offset &- layout.tableOffset
        if table.indices.contains(inTable) { return table[inTable] }
        let inPendingBits = offset &- layout.pendingBitsOffset
        guard (0..<8).contains(inPendingBits) else { return 0 }
        return UInt8(truncatingIfNeeded: pending >> (inPendingBits * 8))
    }

    private mutating func takePending(_ bit: UInt64) -> Bool {
        guard pending & connected & ~masked & bit != 0 else { return false }
        pending &= ~bit
        return true
    }

    private func bit(_ vector: Int) -> UInt64? {
        (0..<layout.vectorCount).contains(vector) ? 1 << UInt64(vector) : nil
    }

    /// A table of 16-byte entries, each with the Mask bit of Vector Control (byte 12) set.
    private static func resetTable(_ layout: MSIXLayout) -> [UInt8] {
        (0..<layout.vectorCount * 16).map { $0 % 16 == 12 ? 1 : 0 }
    }
}
