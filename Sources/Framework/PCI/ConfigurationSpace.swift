// SPDX-License-Identifier: Apache-2.0

/// The configuration space of a PCI function (PCI Local Bus 3.0, chapter 6; PCI Express 4.0, 7.2).
///
/// Each bit is read-only, read-write, or write-one-to-clear, as
/// ``define(_:at:writable:clearable:)`` has set it. Reads and writes may have any width and
/// alignment.
public struct ConfigurationSpace: Sendable {
    /// The size of the extended configuration space of PCI Express in bytes.
    public static let size = 4096

    private var bytes = [UInt8](repeating: 0, count: size)
    private var resetBytes = [UInt8](repeating: 0, count: size)
    private var writable = [UInt8](repeating: 0, count: size)
    private var clearable = [UInt8](repeating: 0, count: size)
    /// The offset of the next capability. The first 64 bytes are the header.
    private var nextCapability = 0x40
    /// The offset of the byte that will point to the next capability.
    private var capabilityLink = HeaderOffset.capabilitiesPointer

    /// A space in which every bit is a read-only zero.
    public init() {}

    /// Defines a field: its value after reset, and the bits that software can change.
    ///
    /// - Parameters:
    ///   - writable: the read-write bits.
    ///   - clearable: the write-one-to-clear bits.
    /// - Precondition: the field is inside the space.
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

    /// Appends a capability to the capabilities list (PCI Local Bus 3.0, 6.7).
    ///
    /// The caller defines the fields after Capability ID and Next Pointer.
    ///
    /// - Parameters:
    ///   - identifier: the Capability ID.
    ///   - size: the size of the capability in bytes, with ID and Next Pointer.
    /// - Returns: the offset of the capability.
    /// - Precondition: the capability ends within the first 256 bytes.
    public mutating func addCapability(_ identifier: UInt8, size: Int) -> Int {
        let offset = nextCapability
        precondition(offset + size <= 0x100, "no room for capability \(identifier)")
        define(UInt8(offset), at: capabilityLink)
        define(identifier, at: offset)
        define(UInt8(0), at: offset + 1)
        capabilityLink = offset + 1
        nextCapability = (offset + size + 3) & ~3
        setCapabilitiesListStatus()
        return offset
    }

    /// Resets every field to its defined value.
    public mutating func reset() { bytes = resetBytes }

    /// Reads as many bytes as `target` has room for. Bytes beyond the space read as ones.
    public func read(at offset: Int, into target: inout OutputSpan<UInt8>) {
        var index = offset
        while !target.isFull {
            target.append(bytes.indices.contains(index) ? bytes[index] : 0xff)
            index &+= 1
        }
    }

    /// Writes bytes. Read-only bits and bytes beyond the space ignore the write.
    public mutating func write(at offset: Int, from source: Span<UInt8>) {
        for position in source.indices {
            let index = offset &+ position
            guard bytes.indices.contains(index) else { continue }
            let new = source[position]
            let kept = bytes[index] & ~writable[index]
            bytes[index] = (kept & ~(new & clearable[index])) | (new & writable[index])
        }
    }

    /// The current value of a field, for the function itself.
    ///
    /// - Precondition: the field is inside the space.
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

    /// Sets Capabilities List, bit 4 of the Status register.
    private mutating func setCapabilitiesListStatus() {
        let status = value(UInt16.self, at: HeaderOffset.status) | 1 << 4
        define(status, at: HeaderOffset.status, clearable: PCIHeader.clearableStatus)
    }
}
