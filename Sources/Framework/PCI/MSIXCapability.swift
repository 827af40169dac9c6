// SPDX-License-Identifier: Apache-2.0

/// The position of a function's MSI-X Table and Pending Bit Array, PBA (PCI Local Bus 3.0, 6.8.2).
public struct MSIXLayout: Sendable {
    /// Entries of the MSI-X Table, 1 to 64.
    public let vectorCount: Int
    /// The BAR Indicator register (BIR): the index of the Base Address register that maps both
    /// structures.
    public let baseAddressRegister: Int
    /// The offset of the MSI-X Table in the memory of that register.
    public let tableOffset: Int
    /// The offset of the PBA in the memory of that register.
    public let pendingBitsOffset: Int

    /// - Precondition: both offsets are multiples of 4096. VMMs trap whole pages, so the pages
    ///   of the table contain nothing else.
    public init(
        vectorCount: Int, baseAddressRegister: Int, tableOffset: Int, pendingBitsOffset: Int
    ) {
        precondition((1...64).contains(vectorCount), "\(vectorCount) vectors")
        precondition(
            tableOffset & 0xfff == 0 && pendingBitsOffset & 0xfff == 0, "not page-aligned")
        self.vectorCount = vectorCount
        self.baseAddressRegister = baseAddressRegister
        self.tableOffset = tableOffset
        self.pendingBitsOffset = pendingBitsOffset
    }
}

extension ConfigurationSpace {
    /// Appends the MSI-X capability (6.8.2.1 to 6.8.2.5).
    ///
    /// - Returns: the offset of the capability.
    @discardableResult
    public mutating func addCapability(_ layout: MSIXLayout) -> Int {
        let offset = addCapability(0x11, size: 12)
        // Message Control: Table Size (the count minus one), Function Mask (14), MSI-X Enable (15).
        define(UInt16(layout.vectorCount - 1), at: offset + 2, writable: 1 << 14 | 1 << 15)
        define(UInt32(layout.tableOffset | layout.baseAddressRegister), at: offset + 4)
        define(UInt32(layout.pendingBitsOffset | layout.baseAddressRegister), at: offset + 8)
        return offset
    }
}
