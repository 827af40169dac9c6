// SPDX-License-Identifier: Apache-2.0

/// A base address register for memory (PCI Local Bus 3.0, 6.2.5.1).
public struct BaseAddress: Sendable {
    /// How wide the register is; a wide one takes the next register too.
    public enum Width: Sendable {
        case bits32
        case bits64
    }

    /// 0...5.
    public let index: Int
    public let width: Width
    /// Bytes that the function decodes: a power of two, at least 16.
    public let size: Int

    public init(index: Int, width: Width, size: Int) {
        precondition(
            (0...(width == .bits64 ? 4 : 5)).contains(index), "no base address register \(index)")
        precondition(
            size >= 16 && size & (size - 1) == 0 && UInt32(exactly: size) != nil,
            "\(size) is not a size that a base address register can show")
        self.index = index
        self.width = width
        self.size = size
    }
}

extension ConfigurationSpace {
    /// Only address bits above the size can be written, so that a driver which writes all ones reads
    /// back the size.
    mutating func define(_ address: BaseAddress) {
        let offset = HeaderOffset.baseAddresses + address.index * 4
        let addressBits = UInt64.max << address.size.trailingZeroBitCount
        switch address.width {
        case .bits32:
            define(UInt32(0), at: offset, writable: UInt32(truncatingIfNeeded: addressBits))
        case .bits64:
            // Bits 2:1 say that the register is 64 bits wide. Bit 3 stays clear: registers have
            // side effects, so the memory is not prefetchable.
            define(UInt64(0b100), at: offset, writable: addressBits)
        }
    }
}
