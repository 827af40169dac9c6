// SPDX-License-Identifier: Apache-2.0

/// The read-only registers: Host Controller Capability Registers (xHCI 5.3) and xHCI Supported
/// Protocol Capabilities (xHCI 7.2).
struct CapabilityRegisters {
    private let capabilities: Capabilities
    /// The doublewords of the extended capabilities, which begin at
    /// ``MMIORegister/Base/extendedCapabilities``.
    private let extendedCapabilities: [UInt32]

    init(_ capabilities: Capabilities) {
        self.capabilities = capabilities
        extendedCapabilities = Self.supportedProtocols(capabilities)
    }

    subscript(offset: Int) -> UInt32 {
        if offset >= MMIORegister.Base.extendedCapabilities {
            let index = (offset - MMIORegister.Base.extendedCapabilities) / 4
            return index < extendedCapabilities.count ? extendedCapabilities[index] : 0
        }
        switch offset {
        // HCIVERSION and CAPLENGTH. From 1.20 on, Linux enables runtime power management, which
        // needs save and restore of the controller's state.
        case 0x00: return 0x0110 << 16 | UInt32(MMIORegister.Base.operational)
        // HCSPARAMS1: MaxSlots, MaxIntrs, MaxPorts.
        case 0x04:
            return UInt32(capabilities.slots) | UInt32(capabilities.interrupters) << 8
                | UInt32(capabilities.ports) << 24
        // HCSPARAMS2: Isochronous Scheduling Threshold (IST) of one frame, ERST Max; no scratchpad
        // buffers.
        case 0x08: return 0x9 | UInt32(capabilities.eventRingSegmentsLog2) << 4
        // HCCPARAMS1: 64-bit addresses (AC64), Parse All Event Data (PAE), Contiguous Frame ID
        // Capability (CFC), Maximum Primary Stream Array Size (MaxPSASize), xECP.
        case 0x10:
            return 1 << 0 | 1 << 8 | 1 << 11 | Capabilities.maxPrimaryStreamsLog2 << 12
                | UInt32(MMIORegister.Base.extendedCapabilities / 4) << 16
        case 0x14: return UInt32(MMIORegister.Base.doorbells)
        case 0x18: return UInt32(MMIORegister.Base.runtime)
        // HCSPARAMS3 and HCCPARAMS2: no exit latencies, no optional capabilities.
        default: return 0
        }
    }

    private static func supportedProtocols(_ capabilities: Capabilities) -> [UInt32] {
        var words: [UInt32] = []
        if capabilities.usb2Ports > 0 {
            words += supportedProtocol(
                revision: 0x0200, firstPort: 1, ports: capabilities.usb2Ports, speeds: [],
                isLast: capabilities.usb3Ports == 0)
        }
        if capabilities.usb3Ports > 0 {
            words += supportedProtocol(
                revision: 0x0310, firstPort: capabilities.usb2Ports + 1,
                ports: capabilities.usb3Ports,
                // PSIV 4 is Gen1 x1 at 5 Gb/s, PSIV 5 is Gen2 x1 at 10 Gb/s with the SuperSpeedPlus
                // link protocol; both are symmetric and full-duplex.
                speeds: [0x0005_0134, 0x000a_4135],
                isLast: true)
        }
        return words
    }

    /// One xHCI Supported Protocol Capability. Without Protocol Speed ID doublewords (`speeds`) the
    /// default Port Speed values apply (xHCI 7.2.2.1.1).
    private static func supportedProtocol(
        revision: UInt32, firstPort: Int, ports: Int, speeds: [UInt32], isLast: Bool
    ) -> [UInt32] {
        let name: UInt32 = 0x2042_5355  // "USB "
        let length = 4 + speeds.count
        return [
            2 | (isLast ? 0 : UInt32(length)) << 8 | revision << 16,
            name,
            UInt32(firstPort) | UInt32(ports) << 8 | UInt32(speeds.count) << 28,
            0,  // Protocol Slot Type
        ] + speeds
    }
}
