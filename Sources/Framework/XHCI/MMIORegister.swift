// SPDX-License-Identifier: Apache-2.0

/// A 32-bit register of the controller, decoded from its offset (xHCI 5.1).
///
/// Reading and writing switch over all cases, so a register that is forgotten does not compile.
/// 64-bit registers are two cases, because drivers write their halves one after the other.
enum MMIORegister: Equatable {
    case capability(Int)
    case extendedCapability(Int)
    case usbCommand
    case usbStatus
    case pageSize
    case deviceNotificationControl
    case commandRingControlLow
    case commandRingControlHigh
    case deviceContextsLow
    case deviceContextsHigh
    case configure
    case port(Int, Port)
    case microframeIndex
    case interrupter(Int, Interrupter)
    case doorbell(Int)

    /// The registers of a port (xHCI 5.4.8 to 5.4.11).
    enum Port: Int {
        case statusAndControl = 0
        case powerManagement = 4
        case linkInfo = 8
        case hardwareLPM = 12
    }

    /// The registers of an interrupter (xHCI 5.5.2).
    enum Interrupter: Int {
        case management = 0
        case moderation = 4
        case segmentTableSize = 8
        case reserved = 12
        case segmentTableLow = 16
        case segmentTableHigh = 20
        case dequeueLow = 24
        case dequeueHigh = 28
    }

    /// Where the parts of the register space begin.
    enum Base {
        static let operational = 0x40
        static let ports = operational + 0x400
        static let extendedCapabilities = 0x800
        static let runtime = 0x1000
        static let interrupters = runtime + 0x20
        static let doorbells = 0x2000
    }

    /// The register at `offset`, a multiple of four; `nil` where there is none.
    init?(offset: Int, capabilities: Capabilities) {
        switch offset {
        case 0..<0x20:
            self = .capability(offset)
        case Base.operational..<Base.ports:
            switch offset - Base.operational {
            case 0x00: self = .usbCommand
            case 0x04: self = .usbStatus
            case 0x08: self = .pageSize
            case 0x14: self = .deviceNotificationControl
            case 0x18: self = .commandRingControlLow
            case 0x1c: self = .commandRingControlHigh
            case 0x30: self = .deviceContextsLow
            case 0x34: self = .deviceContextsHigh
            case 0x38: self = .configure
            default: return nil
            }
        case Base.ports..<Base.ports + 16 * capabilities.ports:
            let index = offset - Base.ports
            guard let register = Port(rawValue: index % 16) else { return nil }
            self = .port(index / 16, register)
        case Base.extendedCapabilities..<Base.extendedCapabilities + 0x40:
            self = .extendedCapability(offset - Base.extendedCapabilities)
        case Base.runtime:
            self = .microframeIndex
        case Base.interrupters..<Base.interrupters + 32 * capabilities.interrupters:
            let index = offset - Base.interrupters
            guard let register = Interrupter(rawValue: index % 32) else { return nil }
            self = .interrupter(index / 32, register)
        case Base.doorbells..<Base.doorbells + 4 * (capabilities.slots + 1):
            self = .doorbell((offset - Base.doorbells) / 4)
        default:
            return nil
        }
    }
}

extension Capabilities {
    /// All root hub ports.
    var ports: Int { usb2Ports + usb3Ports }

    /// The capability registers (xHCI 5.3).
    func capabilityRegister(at offset: Int) -> UInt32 {
        switch offset {
        case 0x00:  // CAPLENGTH, HCIVERSION 1.1
            return 0x0110_0000 | UInt32(MMIORegister.Base.operational)
        case 0x04:  // HCSPARAMS1: MaxSlots, MaxIntrs, MaxPorts
            return UInt32(slots) | UInt32(interrupters) << 8 | UInt32(ports) << 24
        case 0x08:  // HCSPARAMS2: IST of one frame, ERST Max, no scratchpads
            return 1 << 3 | 1 | UInt32(eventRingSegmentsLog2) << 4
        case 0x0c:  // HCSPARAMS3: no U1 or U2 exit latency
            return 0
        case 0x10:  // HCCPARAMS1: AC64, PPC, xECP in dwords
            return 1 << 0 | 1 << 3 | UInt32(MMIORegister.Base.extendedCapabilities / 4) << 16
        case 0x14:
            return UInt32(MMIORegister.Base.doorbells)
        case 0x18:
            return UInt32(MMIORegister.Base.runtime)
        default:  // HCCPARAMS2 and what is reserved
            return 0
        }
    }

    /// The extended capabilities: Supported Protocol for USB 2.0 and USB 3.1 (xHCI 7.2).
    ///
    /// Neither has Protocol Speed IDs, so the default speeds of table 7-13 apply.
    func extendedCapability(at offset: Int) -> UInt32 {
        let name: UInt32 = 0x2042_5355  // "USB "
        switch offset {
        case 0x00: return 0x0200_0002 | 4 << 8
        case 0x04: return name
        case 0x08: return 1 | UInt32(usb2Ports) << 8
        case 0x10: return 0x0300_0002
        case 0x14: return name
        case 0x18: return UInt32(usb2Ports + 1) | UInt32(usb3Ports) << 8
        default: return 0
        }
    }
}
