// SPDX-License-Identifier: Apache-2.0

/// A Base Address register (BAR) for memory (PCI Local Bus 3.0, 6.2.5.1).
public struct BaseAddressRegister: Sendable {
    /// The width of the address. A 64-bit address takes two registers.
    public enum Width: Sendable {
        case bits32
        case bits64
    }

    /// The register's index, 0 to 5.
    public let index: Int
    public let width: Width
    /// Bytes that the function decodes: a power of two, at least 16.
    public let size: Int

    /// - Precondition: the index leaves room for the width, and the size is one that a register can
    ///   encode.
    public init(index: Int, width: Width, size: Int) {
        precondition(
            (0...(width == .bits64 ? 4 : 5)).contains(index), "no Base Address register \(index)")
        precondition(
            size >= 16 && size & (size - 1) == 0 && UInt32(exactly: size) != nil,
            "a Base Address register cannot encode a size of \(size)")
        self.index = index
        self.width = width
        self.size = size
    }
}

extension ConfigurationSpace {
    /// Defines a Base Address register.
    ///
    /// Address bits below the size are read-only zeroes, so software that writes all ones reads
    /// back the size.
    mutating func define(_ register: BaseAddressRegister) {
        let offset = HeaderOffset.baseAddressRegisters + register.index * 4
        let addressBits = UInt64.max << register.size.trailingZeroBitCount
        switch register.width {
        case .bits32:
            define(UInt32(0), at: offset, writable: UInt32(truncatingIfNeeded: addressBits))
        case .bits64:
            // Bits 2:1, type: 64 bits wide. Bit 3, prefetchable, stays clear: the memory is
            // registers with side effects.
            define(UInt64(0b100), at: offset, writable: addressBits)
        }
    }
}
