// SPDX-License-Identifier: Apache-2.0

/// Where a function's MSI-X structures lie (PCI Local Bus 3.0, 6.8.2).
public struct MSIXLayout: Sendable {
    public let vectors: Int
    /// The base address register behind which both structures lie.
    public let baseAddress: Int
    public let tableOffset: Int
    public let pendingOffset: Int

    /// A table of `vectors` entries (1...64) and its pending bits.
    ///
    /// The two lie on pages of their own: clients trap the table by pages, and move one that shares
    /// its page with something else.
    public init(vectors: Int, baseAddress: Int, tableOffset: Int, pendingOffset: Int) {
        precondition((1...64).contains(vectors), "\(vectors) vectors")
        precondition(tableOffset & 0xfff == 0 && pendingOffset & 0xfff == 0, "not page-aligned")
        self.vectors = vectors
        self.baseAddress = baseAddress
        self.tableOffset = tableOffset
        self.pendingOffset = pendingOffset
    }
}

extension ConfigurationSpace {
    /// Adds the MSI-X capability (6.8.2.1 to 6.8.2.5) and returns where it begins.
    @discardableResult
    public mutating func addCapability(_ layout: MSIXLayout) -> Int {
        let offset = addCapability(0x11, size: 12)
        // Message control: table size minus one; bit 14 masks the function, bit 15 enables.
        define(UInt16(layout.vectors - 1), at: offset + 2, writable: 0xc000)
        define(UInt32(layout.tableOffset | layout.baseAddress), at: offset + 4)
        define(UInt32(layout.pendingOffset | layout.baseAddress), at: offset + 8)
        return offset
    }
}

/// Which of a function's messages may be sent and which wait.
///
/// The client stands between the guest and this function: it keeps the table that the guest writes
/// and turns an entry into an eventfd, so a vector that has one is a vector that may be sent.
/// A message that cannot be sent is remembered as pending, once, and is sent as soon as it can be.
/// The table here is memory that nobody but the guest interprets.
public struct MSIXState: Sendable {
    public let layout: MSIXLayout
    private var table: [UInt8]
    private var connected: UInt64 = 0
    private var masked: UInt64 = 0
    private var pending: UInt64 = 0

    public init(_ layout: MSIXLayout) {
        self.layout = layout
        table = Self.tableAfterReset(layout)
    }

    /// Wants to send a message. Returns whether to send it now.
    public mutating func raise(_ vector: Int) -> Bool {
        guard let bit = bit(vector) else { return false }
        if connected & ~masked & bit != 0 { return true }
        pending |= bit
        return false
    }

    /// Notes whether the client receives this vector. Returns whether to send a message now.
    public mutating func setConnected(_ vector: Int, _ isConnected: Bool) -> Bool {
        guard let bit = bit(vector) else { return false }
        if isConnected { connected |= bit } else { connected &= ~bit }
        return takePending(bit)
    }

    /// Masks or unmasks a vector. Returns whether to send a message now.
    public mutating func setMasked(_ vector: Int, _ isMasked: Bool) -> Bool {
        guard let bit = bit(vector) else { return false }
        if isMasked { masked |= bit } else { masked &= ~bit }
        return takePending(bit)
    }

    /// Whether a message waits.
    public func isPending(_ vector: Int) -> Bool { bit(vector).map { pending & $0 != 0 } ?? false }

    /// The function was reset: what waited is forgotten, what the client connected stays.
    public mutating func reset() {
        pending = 0
        masked = 0
        table = Self.tableAfterReset(layout)
    }

    /// Reads the memory behind the base address register; between the structures it is zero.
    public func read(at offset: Int, into target: inout OutputSpan<UInt8>) {
        var position = offset
        while !target.isFull {
            target.append(byte(at: position))
            position &+= 1
        }
    }

    /// Writes the table; pending bits are read-only.
    public mutating func write(at offset: Int, from source: Span<UInt8>) {
        for index in source.indices {
            let position = offset &+ index &- layout.tableOffset
            if table.indices.contains(position) { table[position] = source[index] }
        }
    }

    private func byte(at offset: Int) -> UInt8 {
        let inTable = offset &- layout.tableOffset
        if table.indices.contains(inTable) { return table[inTable] }
        let inPending = offset &- layout.pendingOffset
        guard (0..<8).contains(inPending) else { return 0 }
        return UInt8(truncatingIfNeeded: pending >> (inPending * 8))
    }

    private mutating func takePending(_ bit: UInt64) -> Bool {
        guard pending & connected & ~masked & bit != 0 else { return false }
        pending &= ~bit
        return true
    }

    private func bit(_ vector: Int) -> UInt64? {
        (0..<layout.vectors).contains(vector) ? 1 << UInt64(vector) : nil
    }

    /// Vector control (the last word of each entry) has its mask bit set after reset.
    private static func tableAfterReset(_ layout: MSIXLayout) -> [UInt8] {
        (0..<layout.vectors * 16).map { $0 % 16 == 12 ? 1 : 0 }
    }
}
