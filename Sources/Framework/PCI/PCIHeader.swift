// SPDX-License-Identifier: Apache-2.0

/// Where the fields of a type 0 header lie (PCI Local Bus 3.0, figure 6-1).
enum HeaderOffset {
    static let vendor = 0x00
    static let device = 0x02
    static let command = 0x04
    static let status = 0x06
    static let revision = 0x08
    static let programmingInterface = 0x09
    static let subclass = 0x0a
    static let baseClass = 0x0b
    static let cacheLineSize = 0x0c
    static let baseAddresses = 0x10
    static let subsystemVendor = 0x2c
    static let subsystem = 0x2e
    static let capabilitiesPointer = 0x34
    static let interruptLine = 0x3c
}

/// Who a function is and which memory it decodes: the first 64 bytes of its configuration space.
///
/// A function of this program has no interrupt pin (offset 0x3d reads zero), no I/O space and no
/// expansion ROM: the register at 0x30 reads zero whatever is written, which tells both firmware
/// and clients that there is none.
public struct PCIHeader: Sendable {
    /// Base class, subclass and programming interface, as in `0x0c0330`.
    public var classCode: UInt32
    public var vendor: UInt16
    public var device: UInt16
    public var revision: UInt8
    public var subsystemVendor: UInt16
    public var subsystem: UInt16
    public var baseAddresses: [BaseAddress]

    public init(
        classCode: UInt32, vendor: UInt16, device: UInt16, revision: UInt8,
        subsystemVendor: UInt16, subsystem: UInt16, baseAddresses: [BaseAddress]
    ) {
        self.classCode = classCode
        self.vendor = vendor
        self.device = device
        self.revision = revision
        self.subsystemVendor = subsystemVendor
        self.subsystem = subsystem
        self.baseAddresses = baseAddresses
    }

    /// Command bits that can be set: memory space (1), bus master (2), parity error response (6),
    /// SERR# (8), interrupt disable (10).
    static let commandWritable: UInt16 = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 8 | 1 << 10
    /// Status bits that report errors and are cleared by writing one: 8 and 15:11.
    static let statusErrors: UInt16 = 1 << 8 | 0xf800
}

extension ConfigurationSpace {
    /// A space that begins with this header.
    public init(_ header: PCIHeader) {
        self.init()
        define(header.vendor, at: HeaderOffset.vendor)
        define(header.device, at: HeaderOffset.device)
        define(UInt16(0), at: HeaderOffset.command, writable: PCIHeader.commandWritable)
        define(UInt16(0), at: HeaderOffset.status, clearable: PCIHeader.statusErrors)
        define(header.revision, at: HeaderOffset.revision)
        define(
            UInt8(truncatingIfNeeded: header.classCode), at: HeaderOffset.programmingInterface)
        define(UInt8(truncatingIfNeeded: header.classCode >> 8), at: HeaderOffset.subclass)
        define(UInt8(truncatingIfNeeded: header.classCode >> 16), at: HeaderOffset.baseClass)
        define(UInt8(0), at: HeaderOffset.cacheLineSize, writable: 0xff)
        for address in header.baseAddresses { define(address) }
        define(header.subsystemVendor, at: HeaderOffset.subsystemVendor)
        define(header.subsystem, at: HeaderOffset.subsystem)
        define(UInt8(0), at: HeaderOffset.interruptLine, writable: 0xff)
    }
}
