// SPDX-License-Identifier: Apache-2.0

internal import PCI
internal import VFIOUser
internal import XHCI

/// How the controller presents itself on the PCI bus (xHCI 1.1, 5.2).
///
/// The numbers are those of QEMU's `qemu-xhci`, which every guest knows and none has workarounds for.
/// There is neither an interrupt pin, which would cost Cloud Hypervisor a message for each register
/// access, nor a power management or PCI Express capability, which no driver needs.
enum XHCIIdentity {
    static let header = PCIHeader(
        classCode: 0x0c_03_30, vendorID: 0x1b36, deviceID: 0x000d, revisionID: 0x01,
        subsystemVendorID: 0x1af4, subsystemID: 0x1100,
        baseAddressRegisters: [registers, interruptMemory])

    /// The register space, 64 bits wide as the specification wants it (5.2.1).
    static let registers = BaseAddressRegister(
        index: 0, width: .bits64, size: Controller.registerSpaceSize)

    /// MSI-X lies apart, so that no client needs to cut register pages out of it.
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
