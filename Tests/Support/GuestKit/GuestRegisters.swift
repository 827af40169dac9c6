// SPDX-License-Identifier: Apache-2.0

/// The offsets of the registers, from the capability registers (xHCI 5.3).
public struct GuestRegisters: Sendable {
    /// CAPLENGTH: the offset of the operational registers.
    public let operational: Int
    /// RTSOFF.
    public let runtime: Int
    /// DBOFF.
    public let doorbells: Int
    public let slots: Int
    public let interrupters: Int
    public let ports: Int
    /// 32 or 64 (CSZ).
    public let contextSize: Int
    public let structural1: UInt32
    public let structural2: UInt32
    public let capability1: UInt32

    public init(_ machine: any Machine) {
        operational = Int(machine.read32(0) & 0xff)
        structural1 = machine.read32(0x04)
        structural2 = machine.read32(0x08)
        capability1 = machine.read32(0x10)
        doorbells = Int(machine.read32(0x14) & ~3)
        runtime = Int(machine.read32(0x18) & ~0x1f)
        slots = Int(structural1 & 0xff)
        interrupters = Int(structural1 >> 8 & 0x7ff)
        ports = Int(structural1 >> 24)
        contextSize = capability1 & 4 != 0 ? 64 : 32
    }

    /// USBCMD.
    public var command: Int { operational }
    /// USBSTS.
    public var status: Int { operational + 0x04 }
    /// PAGESIZE.
    public var pageSize: Int { operational + 0x08 }
    /// DNCTRL.
    public var notificationControl: Int { operational + 0x14 }
    /// CRCR.
    public var commandRing: Int { operational + 0x18 }
    /// DCBAAP.
    public var deviceContexts: Int { operational + 0x30 }
    /// CONFIG.
    public var configure: Int { operational + 0x38 }
    /// PORTSC of a port (from 1); PORTPMSC, PORTLI and PORTHLPMC follow.
    public func port(_ number: Int) -> Int { operational + 0x400 + (number - 1) * 0x10 }
    /// MFINDEX.
    public var microframeIndex: Int { runtime }
    /// IMAN of an interrupter; IMOD +4, ERSTSZ +8, ERSTBA +16, ERDP +24.
    public func interrupter(_ number: Int) -> Int { runtime + 0x20 + number * 0x20 }
}
