// SPDX-License-Identifier: Apache-2.0

/// Offsets of the registers in a Type 00h configuration space header (PCI Local Bus 3.0, figure
/// 6-1).
enum HeaderOffset {
    static let vendorID = 0x00
    static let deviceID = 0x02
    static let command = 0x04
    static let status = 0x06
    static let revisionID = 0x08
    /// The first of the three bytes of Class Code.
    static let programmingInterface = 0x09
    static let subclass = 0x0a
    static let baseClass = 0x0b
    static let cacheLineSize = 0x0c
    static let baseAddressRegisters = 0x10
    static let subsystemVendorID = 0x2c
    static let subsystemID = 0x2e
    static let capabilitiesPointer = 0x34
    static let interruptLine = 0x3c
}

/// A Type 00h configuration space header: the identity of a function and the memory that it decodes
/// (PCI Local Bus 3.0, 6.1).
///
/// The function has no interrupt pin (Interrupt Pin reads zero), no I/O space and no expansion ROM.
/// The Expansion ROM Base Address register is a read-only zero, which is how software detects that.
public struct PCIHeader: Sendable {
    /// Class Code: base class, sub-class and programming interface, as in `0x0c0330`.
    public var classCode: UInt32
    public var vendorID: UInt16
    public var deviceID: UInt16
    public var revisionID: UInt8
    public var subsystemVendorID: UInt16
    public var subsystemID: UInt16
    public var baseAddressRegisters: [BaseAddressRegister]

    public init(
        classCode: UInt32, vendorID: UInt16, deviceID: UInt16, revisionID: UInt8,
        subsystemVendorID: UInt16, subsystemID: UInt16,
        baseAddressRegisters: [BaseAddressRegister]
    ) {
        self.classCode = classCode
        self.vendorID = vendorID
        self.deviceID = deviceID
        self.revisionID = revisionID
        self.subsystemVendorID = subsystemVendorID
        self.subsystemID = subsystemID
        self.baseAddressRegisters = baseAddressRegisters
    }

    /// Read-write bits of the Command register: Memory Space (1), Bus Master (2), Parity Error
    /// Response (6), SERR# Enable (8), Interrupt Disable (10).
    static let writableCommand: UInt16 = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 8 | 1 << 10
    /// Write-one-to-clear bits of the Status register, which report errors: 8 and 15:11.
    static let clearableStatus: UInt16 = 1 << 8 | 0xf800
}

extension ConfigurationSpace {
    /// A space with this header and no capabilities.
    public init(_ header: PCIHeader) {
        self.init()
        define(header.vendorID, at: HeaderOffset.vendorID)
        define(header.deviceID, at: HeaderOffset.deviceID)
        define(UInt16(0), at: HeaderOffset.command, writable: PCIHeader.writableCommand)
        define(UInt16(0), at: HeaderOffset.status, clearable: PCIHeader.clearableStatus)
        define(header.revisionID, at: HeaderOffset.revisionID)
        define(
            UInt8(truncatingIfNeeded: header.classCode), at: HeaderOffset.programmingInterface)
        define(UInt8(truncatingIfNeeded: header.classCode >> 8), at: HeaderOffset.subclass)
        define(UInt8(truncatingIfNeeded: header.classCode >> 16), at: HeaderOffset.baseClass)
        define(UInt8(0), at: HeaderOffset.cacheLineSize, writable: 0xff)
        for register in header.baseAddressRegisters { define(register) }
        define(header.subsystemVendorID, at: HeaderOffset.subsystemVendorID)
        define(header.subsystemID, at: HeaderOffset.subsystemID)
        define(UInt8(0), at: HeaderOffset.interruptLine, writable: 0xff)
    }
}
