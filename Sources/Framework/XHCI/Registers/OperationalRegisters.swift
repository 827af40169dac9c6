// SPDX-License-Identifier: Apache-2.0

/// USBCMD, the USB Command Register (xHCI 5.4.1).
struct USBCommand: OptionSet {
    var rawValue: UInt32

    /// R/S.
    static let run = USBCommand(rawValue: 1 << 0)
    /// HCRST.
    static let reset = USBCommand(rawValue: 1 << 1)
    /// INTE.
    static let interrupterEnable = USBCommand(rawValue: 1 << 2)
    /// HSEE: stored without effect, because there is no SERR# to assert.
    static let hostSystemErrorEnable = USBCommand(rawValue: 1 << 3)
    /// CSS.
    static let saveState = USBCommand(rawValue: 1 << 8)
    /// CRS.
    static let restoreState = USBCommand(rawValue: 1 << 9)
    /// EWE.
    static let wrapEventEnable = USBCommand(rawValue: 1 << 10)

    /// The bits that software can set and clear. Light Host Controller Reset (LHCRST), Enable U3
    /// MFINDEX Stop (EU3S) and the features of HCCPARAMS2 are not implemented.
    static let writable: USBCommand = [
        .run, .interrupterEnable, .hostSystemErrorEnable, .wrapEventEnable,
    ]
}

/// USBSTS, the USB Status Register (xHCI 5.4.2).
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

    /// Writes the register: bits written as one are cleared.
    mutating func write(_ value: UInt32) {
        subtract(USBStatus(rawValue: value).intersection(.writeOneToClear))
    }
}

/// CRCR, the Command Ring Control Register (xHCI 5.4.5).
struct CommandRingControl {
    /// The Command Ring Pointer and RCS: the position at which the ring stopped, or the one written
    /// since.
    private(set) var start = RingPosition(rawValue: 0)
    /// CRR.
    private(set) var isRunning = false
    /// A CS or CA that was written and is not yet complete.
    var stopRequest: StopRequest?

    enum StopRequest {
        /// CS: stop after the current command.
        case stop
        /// CA: abort the current command and stop.
        case abort
    }

    mutating func run() { isRunning = true }

    /// Marks the ring stopped (CRR clear) at the next TRB to execute.
    ///
    /// Later writes of one half of the pointer combine with this position. Drivers write both
    /// halves to stop the ring, and the second write may arrive after the ring has stopped.
    mutating func stop(at position: RingPosition) {
        stopRequest = nil
        guard isRunning else { return }
        isRunning = false
        start = position
    }

    /// The low half as software reads it: CRR; the pointer and the other flags read as zero.
    var lowHalf: UInt32 { isRunning ? 1 << 3 : 0 }

    /// Writes RCS, CS, CA and the low half of the pointer. While CRR is set, only CS and CA have an
    /// effect.
    mutating func writeLow(_ value: UInt32) {
        if isRunning {
            if value[bit: 2] {
                stopRequest = .abort
            } else if value[bit: 1], stopRequest == nil {
                stopRequest = .stop
            }
            return
        }
        var pointer = start.rawValue
        pointer.lowHalf = value & ~0x3e
        start = RingPosition(rawValue: pointer)
    }

    /// Writes the high half of the pointer; ignored while CRR is set.
    mutating func writeHigh(_ value: UInt32) {
        guard !isRunning else { return }
        var pointer = start.rawValue
        pointer.highHalf = value
        start = RingPosition(rawValue: pointer)
    }
}
