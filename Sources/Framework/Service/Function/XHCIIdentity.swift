// SPDX-License-Identifier: Apache-2.0

internal import PCI
internal import VFIOUser
internal import XHCI

/// The controller's PCI identity: header, BARs and capabilities (xHCI 1.1, 5.2).
///
/// The IDs are those of QEMU's `qemu-xhci`: every guest has a driver for it, and none applies a
/// workaround. There is no interrupt pin, because it would cost Cloud Hypervisor a message for each
/// register access, and no power management or PCI Express capability, because no driver needs one.
enum XHCIIdentity {
    static let header = PCIHeader(
        classCode: 0x0c_03_30, vendorID: 0x1b36, deviceID: 0x000d, revisionID: 0x01,
        subsystemVendorID: 0x1af4, subsystemID: 0x1100,
        baseAddressRegisters: [registers, interruptMemory])

    /// BAR 0, the register space: a 64-bit BAR (5.2.1).
    static let registers = BaseAddressRegister(
        index: 0, width: .bits64, size: Controller.registerSpaceSize)

    /// BAR 2, MSI-X table and PBA: apart from the registers, so that a client can trap each
    /// separately.
    static let interruptMemory = BaseAddressRegister(index: 2, width: .bits32, size: 0x2000)

    static func interruptLayout(vectors: Int) -> MSIXLayout {
        MSIXLayout(
            vectorCount: vectors, baseAddressRegister: interruptMemory.index, tableOffset: 0,
            pendingBitsOffset: 0x1000)
    }

    static func configurationSpace(interrupts: MSIXLayout) -> ConfigurationSpace {
        var space = ConfigurationSpace(header)
        space.addCapability(interrupts)
        // SBRN: USB 3.0 (5.2.3). FLADJ: a frame has its nominal length (5.2.4).
        space.define(UInt8(0x30), at: 0x60)
        space.define(UInt8(0x20), at: 0x61, writable: 0x3f)
        return space
    }

    static let regions: [RegionDescription] = {
        var all = [RegionDescription](repeating: .absent, count: RegionDescription.PCI.count)
        for register in header.baseAddressRegisters {
            all[register.index] = RegionDescription(size: UInt64(register.size))
        }
        all[RegionDescription.PCI.configuration] = RegionDescription(
            size: UInt64(ConfigurationSpace.size))
        return all
    }()
}
