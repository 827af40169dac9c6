// SPDX-License-Identifier: Apache-2.0

/// The configuration space of a PCI function (PCI Local Bus 3.0, chapter 6; PCI Express 4.0, 7.2).
///
/// Each bit is read-only, writable, or cleared by writing one; which of these it is was said when
/// the bit's field was defined, so that reads and writes of any width and alignment need no further
/// knowledge of what lies where. Sizing a base address register works by itself: its address bits
/// below the size are read-only zeroes.
public struct ConfigurationSpace: Sendable {
    /// Bytes of the extended space of PCI Express.
    public static let size = 4096

    private var bytes = [UInt8](repeating: 0, count: size)
    private var resetBytes = [UInt8](repeating: 0, count: size)
    private var writable = [UInt8](repeating: 0, count: size)
    private var clearable = [UInt8](repeating: 0, count: size)
    /// Where the next capability goes; the first 64 bytes are the header.
    private var nextCapability = 0x40
    /// The byte that will point to it.
    private var capabilityLink = HeaderOffset.capabilitiesPointer

    /// A space of zeroes that ignores writes.
    public init() {}

    /// Gives a field its value after reset and says which of its bits the guest may change.
    ///
    /// - Parameters:
    ///   - writable: bits that take what is written.
    ///   - clearable: bits that a written one clears and a written zero leaves.
    public mutating func define<Value: FixedWidthInteger & UnsignedInteger>(
        _ value: Value, at offset: Int, writable: Value = 0, clearable: Value = 0
    ) {
        let width = Value.bitWidth / 8
        precondition(
            offset >= 0 && offset <= Self.size - width, "a field at \(offset) is not in the space")
        for index in 0..<width {
            let shift = index * 8
            bytes[offset + index] = UInt8(truncatingIfNeeded: value >> shift)
            resetBytes[offset + index] = UInt8(truncatingIfNeeded: value >> shift)
            self.writable[offset + index] = UInt8(truncatingIfNeeded: writable >> shift)
            self.clearable[offset + index] = UInt8(truncatingIfNeeded: clearable >> shift)
        }
    }

    /// Adds a capability to the linked list (6.7) and returns where it begins.
    ///
    /// The caller defines what lies behind the two bytes of identifier and link.
    public mutating func addCapability(_ identifier: UInt8, size: Int) -> Int {
        let offset = nextCapability
        precondition(offset + size <= 0x100, "no room for capability \(identifier)")
        define(UInt8(offset), at: capabilityLink)
        define(identifier, at: offset)
        define(UInt8(0), at: offset + 1)
        capabilityLink = offset + 1
        nextCapability = (offset + size + 3) & ~3
        setStatusCapabilitiesList()
        return offset
    }

    /// Returns every field to the value with which it was defined.
    public mutating func reset() { bytes = resetBytes }

    /// Reads as many bytes as `target` has room for; what lies behind the end reads as all ones.
    public func read(at offset: Int, into target: inout OutputSpan<UInt8>) {
        var index = offset
        while !target.isFull {
            target.append(bytes.indices.contains(index) ? bytes[index] : 0xff)
            index &+= 1
        }
    }

    /// Writes bytes; what lies behind the end, and bits that are read-only, ignore it.
    public mutating func write(at offset: Int, from source: Span<UInt8>) {
        for position in source.indices {
            let index = offset &+ position
            guard bytes.indices.contains(index) else { continue }
            let new = source[position]
            let kept = bytes[index] & ~writable[index]
            bytes[index] = (kept & ~(new & clearable[index])) | (new & writable[index])
        }
    }

    /// The value of a field; for the function itself, which knows where its fields are.
    public func value<Value: FixedWidthInteger & UnsignedInteger>(
        _ type: Value.Type = Value.self, at offset: Int
    ) -> Value {
        let width = Value.bitWidth / 8
        precondition(
            offset >= 0 && offset <= Self.size - width, "a field at \(offset) is not in the space")
        var value: Value = 0
        for index in 0..<width { value |= Value(bytes[offset + index]) << (index * 8) }
        return value
    }

    /// Status bit 4: there is a list of capabilities.
    private mutating func setStatusCapabilitiesList() {
        let status = value(UInt16.self, at: HeaderOffset.status) | 1 << 4
        define(status, at: HeaderOffset.status, clearable: PCIHeader.statusErrors)
    }
}
