// SPDX-License-Identifier: Apache-2.0

/// The registers of the controller (xHCI 5), and the work that writing them has left to do.
///
/// Nothing here touches guest memory or a device, and each function is over at once. So registers
/// may be read and written at any time, even in the midst of ``Controller/service(now:)``.
final class RegisterFile {
    let capabilities: Capabilities

    var command: Command = []
    var status: Status = []
    /// Whether the schedule runs: USBSTS.HCH is its opposite.
    private(set) var isRunning = false
    private var deviceNotifications: UInt32 = 0
    /// Command Ring Pointer as the driver wrote it, with the Ring Cycle State in bit 0.
    private(set) var commandRing: UInt64 = 0
    /// CRR.
    var isCommandRingRunning = false
    private(set) var deviceContexts: UInt64 = 0
    /// MaxSlotsEn.
    private(set) var enabledSlots = 0
    private var configureFlags: UInt32 = 0
    var ports: [PortRegisters]
    var interrupters: [InterrupterRegisters]

    /// What is to be done.
    var work: Work = []
    /// The DCIs rung for each slot, a bit each.
    private var rungEndpoints: [UInt32]
    /// The slots in `rungEndpoints` that are not zero, in the order of ringing.
    private var rungSlots: [UInt8] = []
    /// The time at which MFINDEX was zero.
    private var microframeOrigin: Duration = .zero

    init(_ capabilities: Capabilities) {
        self.capabilities = capabilities
        ports = (0..<capabilities.ports).map {
            PortRegisters(isSuperSpeed: $0 >= capabilities.usb2Ports)
        }
        interrupters = Array(repeating: .init(), count: capabilities.interrupters)
        rungEndpoints = Array(repeating: 0, count: capabilities.slots + 1)
        rungSlots.reserveCapacity(capabilities.slots + 1)
    }

    /// USBCMD (xHCI 5.4.1).
    struct Command: OptionSet {
        let rawValue: UInt32

        static let run = Command(rawValue: 1 << 0)
        static let reset = Command(rawValue: 1 << 1)
        static let interruptEnable = Command(rawValue: 1 << 2)
        static let hostSystemErrorEnable = Command(rawValue: 1 << 3)
        static let lightReset = Command(rawValue: 1 << 7)
        static let saveState = Command(rawValue: 1 << 8)
        static let restoreState = Command(rawValue: 1 << 9)
        static let wrapEventEnable = Command(rawValue: 1 << 10)
        static let u3MicroframeStop = Command(rawValue: 1 << 11)

        /// What is kept as written.
        static let stored: Command = [
            .run, .interruptEnable, .hostSystemErrorEnable, .wrapEventEnable, .u3MicroframeStop,
        ]
    }

    /// USBSTS (xHCI 5.4.2) without HCH.
    struct Status: OptionSet {
        let rawValue: UInt32

        static let hostSystemError = Status(rawValue: 1 << 2)
        static let eventInterrupt = Status(rawValue: 1 << 3)
        static let portChange = Status(rawValue: 1 << 4)
        static let saveRestoreError = Status(rawValue: 1 << 10)
        static let hostControllerError = Status(rawValue: 1 << 12)

        static let writeOneToClear: Status = [
            .hostSystemError, .eventInterrupt, .portChange, .saveRestoreError,
        ]
    }

    /// Work that register writes leave for the next service.
    struct Work: OptionSet {
        let rawValue: UInt16

        static let reset = Work(rawValue: 1)
        static let ports = Work(rawValue: 2)
        static let commandRing = Work(rawValue: 4)
        static let commandStop = Work(rawValue: 8)
        static let commandAbort = Work(rawValue: 16)
        static let interrupters = Work(rawValue: 32)
        static let runState = Work(rawValue: 64)
    }

    // MARK: - Access

    /// Reads a register.
    func read(_ register: MMIORegister, now: Duration) -> UInt32 {
        switch register {
        case .capability(let offset): capabilities.capabilityRegister(at: offset)
        case .extendedCapability(let offset): capabilities.extendedCapability(at: offset)
        case .usbCommand: command.rawValue
        case .usbStatus: status.rawValue | (isRunning ? 0 : 1)
        case .pageSize: 1
        case .deviceNotificationControl: deviceNotifications
        case .commandRingControlLow: isCommandRingRunning ? 8 : 0
        case .commandRingControlHigh: 0
        case .deviceContextsLow: UInt32(truncatingIfNeeded: deviceContexts)
        case .deviceContextsHigh: UInt32(truncatingIfNeeded: deviceContexts >> 32)
        case .configure: UInt32(enabledSlots) | configureFlags
        case .port(let port, .statusAndControl): ports[port].statusAndControl
        case .port(let port, .powerManagement): ports[port].powerManagement
        case .port(_, .linkInfo): 0
        case .port(let port, .hardwareLPM): ports[port].hardwareLPM
        case .microframeIndex: UInt32(truncatingIfNeeded: microframe(at: now)) & 0x3fff
        case .interrupter(let index, let register): interrupters[index].read(register)
        case .doorbell: 0
        }
    }

    /// Writes the bytes of a register that `enabled` covers.
    func write(_ value: UInt32, to register: MMIORegister, enabled mask: UInt32, now: Duration) {
        let set = value & mask
        switch register {
        case .capability, .extendedCapability, .pageSize, .microframeIndex, .port(_, .linkInfo):
            break
        case .usbCommand:
            writeCommand(command.rawValue & ~mask | set, now: now)
        case .usbStatus:
            status.subtract(Status(rawValue: set).intersection(.writeOneToClear))
        case .deviceNotificationControl:
            deviceNotifications = (deviceNotifications & ~mask | set) & 0xffff
        case .commandRingControlLow:
            if isCommandRingRunning {
                if set[bit: 1] { work.insert(.commandStop) }
                if set[bit: 2] { work.insert(.commandAbort) }
            } else {
                commandRing.setLow(value & ~0x3e, mask & ~0x3e)
                commandRingWritten = true
            }
        case .commandRingControlHigh:
            guard !isCommandRingRunning else { return }
            commandRing.setHigh(value, mask)
            commandRingWritten = true
        case .deviceContextsLow:
            deviceContexts.setLow(value & ~0x3f, mask & ~0x3f)
        case .deviceContextsHigh:
            deviceContexts.setHigh(value, mask)
        case .configure:
            let new = (UInt32(enabledSlots) | configureFlags) & ~mask | set
            enabledSlots = min(Int(new[bits: 0...7]), capabilities.slots)
            configureFlags = new & 0x300
        case .port(let port, .statusAndControl):
            ports[port].writeStatusAndControl(value, enabled: mask)
            work.insert(.ports)
        case .port(let port, .powerManagement):
            ports[port].writePowerManagement(value, enabled: mask)
        case .port(let port, .hardwareLPM):
            ports[port].writeHardwareLPM(value, enabled: mask)
        case .interrupter(let index, let register):
            interrupters[index].write(register, value, enabled: mask)
            work.insert(.interrupters)
        case .doorbell(let slot):
            // A doorbell is one 32-bit write; a part of one means nothing.
            guard mask == ~0 else { return }
            ring(slot: slot, target: Int(value[bits: 0...7]))
        }
    }

    /// The command ring pointer was written since the ring was last started.
    var commandRingWritten = false

    private func writeCommand(_ value: UInt32, now: Duration) {
        let new = Command(rawValue: value)
        command = new.intersection(.stored).union(command.intersection(.reset))
        if new.contains(.reset) || new.contains(.lightReset) {
            command.insert(.reset)
            work.insert(.reset)
        }
        // State is not kept over a save: a restore reports the error that makes the driver set the
        // controller up anew, which costs it no more than the restore would (xHCI 4.23.2).
        if new.contains(.saveState) { status.remove(.saveRestoreError) }
        if new.contains(.restoreState) { status.insert(.saveRestoreError) }
        let mayRun = status.isDisjoint(with: [.hostSystemError, .hostControllerError])
        let runs = command.contains(.run) && mayRun
        if runs != isRunning {
            isRunning = runs
            if runs { microframeOrigin = now }
            work.insert(.runState)
        }
        work.insert(.interrupters)
    }

    private func ring(slot: Int, target: Int) {
        guard isRunning else { return }
        if slot == 0 {
            if target == 0 { work.insert(.commandRing) }
            return
        }
        guard (1...31).contains(target) else { return }
        if rungEndpoints[slot] == 0 { rungSlots.append(UInt8(slot)) }
        rungEndpoints[slot][bit: target] = true
    }

    // MARK: - For the engine

    /// Takes one slot whose doorbell was rung, and the endpoints concerned.
    func takeRungSlot() -> (slot: Int, endpoints: UInt32)? {
        guard !rungSlots.isEmpty else { return nil }
        let slot = Int(rungSlots.removeFirst())
        let endpoints = rungEndpoints[slot]
        rungEndpoints[slot] = 0
        return (slot, endpoints)
    }

    /// Forgets doorbells of a slot.
    func clearDoorbells(slot: Int) {
        guard rungEndpoints[slot] != 0 else { return }
        rungEndpoints[slot] = 0
        rungSlots.removeAll { Int($0) == slot }
    }

    /// Microframes since the controller was started; MFINDEX is the low 14 bits.
    func microframe(at now: Duration) -> Int64 {
        guard isRunning else { return 0 }
        return (now - microframeOrigin) / .microseconds(125) >= 0
            ? Int64((now - microframeOrigin) / .microseconds(125)) : 0
    }

    /// The time of a microframe.
    func time(ofMicroframe microframe: Int64) -> Duration {
        microframeOrigin + .microseconds(125) * microframe
    }

    /// An access to memory failed in a way that no completion code tells: the controller halts
    /// (xHCI 4.10.2.6).
    func failHost() {
        status.insert(.hostSystemError)
        command.remove(.run)
        isRunning = false
        isCommandRingRunning = false
        work.insert(.runState)
    }

    /// The values after power-on or HCRST. The ports' are the root hub's business.
    func reset() {
        command = []
        status = []
        isRunning = false
        deviceNotifications = 0
        commandRing = 0
        commandRingWritten = false
        isCommandRingRunning = false
        deviceContexts = 0
        enabledSlots = 0
        configureFlags = 0
        for index in interrupters.indices { interrupters[index] = .init() }
        for index in rungEndpoints.indices { rungEndpoints[index] = 0 }
        rungSlots.removeAll(keepingCapacity: true)
        work = .ports
    }
}
