// SPDX-License-Identifier: Apache-2.0

/// USBCMD (xHCI 5.4.1).
struct USBCommand: OptionSet {
    var rawValue: UInt32

    /// R/S.
    static let run = USBCommand(rawValue: 1 << 0)
    /// HCRST.
    static let reset = USBCommand(rawValue: 1 << 1)
    /// INTE.
    static let interrupterEnable = USBCommand(rawValue: 1 << 2)
    /// HSEE: kept, without effect, since there is no SERR# to assert.
    static let hostSystemErrorEnable = USBCommand(rawValue: 1 << 3)
    /// CSS.
    static let saveState = USBCommand(rawValue: 1 << 8)
    /// CRS.
    static let restoreState = USBCommand(rawValue: 1 << 9)
    /// EWE.
    static let wrapEventEnable = USBCommand(rawValue: 1 << 10)

    /// The bits that keep what is written. Light reset, U3 and MEL features are not offered.
    static let writable: USBCommand = [
        .run, .interrupterEnable, .hostSystemErrorEnable, .wrapEventEnable,
    ]
}

/// USBSTS (xHCI 5.4.2).
struct USBStatus: OptionSet {
    var rawValue: UInt32

    /// HCH.
    static let halted = USBStatus(rawValue: 1 << 0)
    /// HSE.
    static let hostSystemError = USBStatus(rawValue: 1 << 2)
    /// EINT.
    static let eventInterrupt = USBStatus(rawValue: 1 << 3)
    /// PCD.
    static let portChange = USBStatus(rawValue: 1 << 4)
    /// SRE.
    static let saveRestoreError = USBStatus(rawValue: 1 << 10)
    /// CNR.
    static let notReady = USBStatus(rawValue: 1 << 11)

    static let reset: USBStatus = [.halted]
    static let writeOneToClear: USBStatus = [
        .hostSystemError, .eventInterrupt, .portChange, .saveRestoreError,
    ]

    /// Clears the bits that are written as one.
    mutating func write(_ value: UInt32) {
        subtract(USBStatus(rawValue: value).intersection(.writeOneToClear))
    }
}

/// CRCR (xHCI 5.4.5): where the command ring begins, and the requests to stop it.
struct CommandRingControl {
    /// Where the ring starts: where it was stopped, or what was written since.
    private(set) var start = RingPosition(rawValue: 0)
    /// CRR.
    private(set) var isRunning = false
    /// A write of CS or CA that has not been carried out.
    var stopRequest: StopRequest?

    /// How the command ring shall end.
    enum StopRequest {
        /// CS: after the command that is being executed.
        case stop
        /// CA: that command is given up, too.
        case abort
    }

    mutating func run() { isRunning = true }

    /// The ring has stopped. What is written of the pointer from now on is combined with the place
    /// where it stands: a driver writes both halves to stop it, and the second may come too late.
    mutating func stop(at position: RingPosition) {
        stopRequest = nil
        guard isRunning else { return }
        isRunning = false
        start = position
    }

    /// The pointer reads as zero.
    var lowHalf: UInt32 { isRunning ? 1 << 3 : 0 }

    /// Writes RCS, CS, CA and the low half of the pointer.
    mutating func writeLow(_ value: UInt32) {
        if isRunning {
            if value[bit: 2] {
                stopRequest = .abort
            } else if value[bit: 1], stopRequest == nil {
                stopRequest = .stop
            }
            return
        }
        let high = start.address & ~0xffff_ffff
        start = RingPosition(rawValue: high | UInt64(value & ~0x3e))
    }

    /// Writes the high half of the pointer.
    mutating func writeHigh(_ value: UInt32) {
        guard !isRunning else { return }
        start = RingPosition(rawValue: start.rawValue & 0xffff_ffff | UInt64(value) << 32)
    }
}
