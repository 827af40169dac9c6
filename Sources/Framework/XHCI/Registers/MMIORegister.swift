// SPDX-License-Identifier: Apache-2.0

/// A register of the MMIO register space, addressed by doubleword.
///
/// Reads and writes switch over it without a default, so a register that one of them forgets does
/// not compile. Reserved doublewords read as zero and ignore writes.
enum MMIORegister: Equatable {
    /// A capability register or extended capability at an offset; read-only.
    case capability(Int)
    case usbCommand
    case usbStatus
    case pageSize
    case notificationControl
    case commandRingLow
    case commandRingHigh
    case contextArrayLow
    case contextArrayHigh
    case configure
    /// A register of a root hub port. The index counts from 0; the specification's port number is
    /// one more.
    case port(Int, PortRegister)
    case microframeIndex
    case interrupter(Int, InterrupterRegister)
    case doorbell(Int)

    enum PortRegister: Int {
        case statusAndControl, powerManagement, linkInformation, hardwareLPM
    }

    enum InterrupterRegister: Int {
        case management, moderation, segmentTableSize, reserved
        case segmentTableLow, segmentTableHigh, dequeueLow, dequeueHigh
    }

    /// Offsets of the register sets.
    enum Base {
        static let operational = 0x40
        static let ports = 0x440
        static let extendedCapabilities = 0x900
        static let runtime = 0x1000
        static let interrupters = 0x1020
        static let doorbells = 0x2000
    }

    /// The register at an offset; `nil` for a reserved doubleword.
    ///
    /// - Parameter offset: a multiple of four.
    init?(offset: Int, capabilities: Capabilities) {
        switch offset {
        case 0..<Base.operational: self = .capability(offset)
        case Base.operational..<Base.ports:
            switch offset - Base.operational {
            case 0x00: self = .usbCommand
            case 0x04: self = .usbStatus
            case 0x08: self = .pageSize
            case 0x14: self = .notificationControl
            case 0x18: self = .commandRingLow
            case 0x1c: self = .commandRingHigh
            case 0x30: self = .contextArrayLow
            case 0x34: self = .contextArrayHigh
            case 0x38: self = .configure
            default: return nil
            }
        case Base.ports..<Base.extendedCapabilities:
            let index = (offset - Base.ports) / 16
            guard index < capabilities.ports,
                let register = PortRegister(rawValue: offset % 16 / 4)
            else { return nil }
            self = .port(index, register)
        case Base.extendedCapabilities..<Base.runtime: self = .capability(offset)
        case Base.runtime: self = .microframeIndex
        case Base.interrupters..<Base.doorbells:
            let index = (offset - Base.interrupters) / 32
            guard index < capabilities.interrupters,
                let register = InterrupterRegister(rawValue: offset % 32 / 4)
            else { return nil }
            self = .interrupter(index, register)
        case Base.doorbells..<Controller.registerSpaceSize:
            let index = (offset - Base.doorbells) / 4
            guard index <= capabilities.slots else { return nil }
            self = .doorbell(index)
        default: return nil
        }
    }
}
