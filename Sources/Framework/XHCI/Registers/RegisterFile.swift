// SPDX-License-Identifier: Apache-2.0

/// All registers (xHCI chapter 5), and the work that register writes request of the engine.
///
/// The guest can read and write registers at any moment, also while the engine waits for guest
/// memory. Therefore accesses only change this state, and no caller keeps exclusive access to a
/// part of it while it calls guest memory or a device.
final class RegisterFile {
    let capabilities: Capabilities
    private let capabilityRegisters: CapabilityRegisters

    /// The engine's next service pass has work.
    var hasWork = false
    /// A port was written or changed its state.
    var hasPortWork = true

    var command: USBCommand = []
    var status: USBStatus = .reset
    private var notificationControl: UInt32 = 0
    var commandRing = CommandRingControl()
    /// DCBAAP, the Device Context Base Address Array Pointer.
    private(set) var contextArray: UInt64 = 0
    private var configure: UInt32 = 0
    var ports: [PortRegisters]
    var interrupters: [InterrupterRegisters]
    /// The interrupters with waiting events or an interrupt to raise, one bit each.
    var interruptersWithWork: UInt16 = 0
    /// The interrupters whose registers were written since their event ring read them, one bit
    /// each.
    var writtenInterrupters: UInt16 = 0
    /// The endpoints whose doorbells were rung, without a Stream ID.
    var doorbells: EndpointSet
    /// The streams whose doorbells were rung.
    var streamDoorbells = PendingStreamDoorbells()
    /// The command doorbell (doorbell 0) was rung.
    var hasCommands = false
    var microframes = MicroframeClock()

    init(_ capabilities: Capabilities) {
        self.capabilities = capabilities
        capabilityRegisters = CapabilityRegisters(capabilities)
        ports = Self.initialPorts(capabilities)
        interrupters = Self.initialInterrupters(capabilities)
        doorbells = EndpointSet(slots: capabilities.slots)
    }

    /// Returns all registers to their power-on values. Attached devices show as newly connected.
    func reset() {
        command = []
        status = .reset
        notificationControl = 0
        commandRing = CommandRingControl()
        contextArray = 0
        configure = 0
        let attachedSpeeds = ports.map(\.attachedSpeed)
        ports = Self.initialPorts(capabilities)
        for (port, speed) in attachedSpeeds.enumerated() {
            if let speed { ports[port].connect(speed) }
        }
        interrupters = Self.initialInterrupters(capabilities)
        interruptersWithWork = 0
        writtenInterrupters = 0
        doorbells = EndpointSet(slots: capabilities.slots)
        streamDoorbells = PendingStreamDoorbells()
        hasCommands = false
        microframes = MicroframeClock()
        hasWork = true
        hasPortWork = true
    }

    private static func initialPorts(_ capabilities: Capabilities) -> [PortRegisters] {
        (0..<capabilities.ports).map {
            PortRegisters(isSuperSpeed: $0 >= capabilities.usb2Ports)
        }
    }

    private static func initialInterrupters(
        _ capabilities: Capabilities
    ) -> [InterrupterRegisters] {
        Array(repeating: InterrupterRegisters(), count: capabilities.interrupters)
    }

    /// Requests service of the ports.
    func markPortWork() {
        hasWork = true
        hasPortWork = true
    }

    /// Whether a port is enabled (PED), so that transfers reach its device.
    func isPortEnabled(_ port: Int) -> Bool { ports[port].isEnabled }

    /// MaxSlotsEn, at most the number of device slots.
    var enabledSlots: Int { min(Int(configure), capabilities.slots) }

    /// Sets HSE and clears R/S, after a failed access to guest memory that no completion code can
    /// report (xHCI 4.10.2.6).
    func reportHostSystemError() {
        status.insert(.hostSystemError)
        command.remove(.run)
        hasWork = true
    }

    // MARK: - Doublewords

    func read(_ register: MMIORegister, now: Duration) -> UInt32 {
        switch register {
        case .capability(let offset): capabilityRegisters[offset]
        case .usbCommand: command.rawValue
        case .usbStatus: status.rawValue
        case .pageSize: 1  // only 4 KiB
        case .notificationControl: notificationControl
        case .commandRingLow: commandRing.lowHalf
        case .commandRingHigh: 0
        case .contextArrayLow: contextArray.lowHalf
        case .contextArrayHigh: contextArray.highHalf
        case .configure: configure
        case .port(let index, let register): read(register, of: ports[index])
        case .microframeIndex: microframes.index(now: now)
        case .interrupter(let index, let register):
            read(register, of: interrupters[index], now: now)
        case .doorbell: 0
        }
    }

    private func read(_ register: MMIORegister.PortRegister, of port: PortRegisters) -> UInt32 {
        switch register {
        case .statusAndControl: port.statusAndControl
        case .powerManagement: port.powerManagementStatus
        case .linkInformation: port.linkInformation
        case .hardwareLPM: port.hardwareLPMControl
        }
    }

    private func read(
        _ register: MMIORegister.InterrupterRegister, of interrupter: InterrupterRegisters,
        now: Duration
    ) -> UInt32 {
        switch register {
        case .management: interrupter.management
        case .moderation: interrupter.moderation(now: now)
        case .segmentTableSize: interrupter.segmentCount
        case .reserved: 0
        case .segmentTableLow: interrupter.segmentTable.lowHalf
        case .segmentTableHigh: interrupter.segmentTable.highHalf
        case .dequeueLow: interrupter.dequeueLow
        case .dequeueHigh: interrupter.dequeuePointer.highHalf
        }
    }

    func write(_ value: UInt32, to register: MMIORegister, now: Duration) {
        if case .interrupter(let index, _) = register {
            // Drivers write these registers at each interrupt, usually when no event is left to
            // post.
            hasWork = hasWork || interruptersWithWork[bit: index]
        } else {
            hasWork = true
        }
        switch register {
        case .capability, .pageSize, .microframeIndex: break
        case .usbCommand: writeCommand(value)
        case .usbStatus: status.write(value)
        case .notificationControl: notificationControl = value & 0xffff
        case .commandRingLow: commandRing.writeLow(value)
        case .commandRingHigh: commandRing.writeHigh(value)
        case .contextArrayLow: contextArray.lowHalf = value & ~0x3f
        case .contextArrayHigh: contextArray.highHalf = value
        case .configure: configure = value & 0xff
        case .port(let index, let register): write(value, to: register, ofPort: index)
        case .interrupter(let index, let register):
            write(value, to: register, ofInterrupter: index, now: now)
        case .doorbell(let slot):
            let target = Int(value[bits: 0...7])
            let stream = Int(value[bits: 16...31])
            if slot > 0, stream > 0 {
                guard (1...31).contains(target) else { return }
                streamDoorbells.insert(.init(slot: slot, endpoint: target, stream: stream))
            } else if slot > 0 {
                doorbells.insert(slot: slot, endpoint: target)
            } else if target == 0 {
                hasCommands = true
            }
        }
    }

    private func writeCommand(_ value: UInt32) {
        let new = USBCommand(rawValue: value)
        command = new.intersection(.writable).union(command.intersection(.reset))
        if new.contains(.reset) {
            command.insert(.reset)
            status.insert(.notReady)
        }
        // Save completes at once. Restore is not supported: SRE makes the driver initialize the
        // controller again (xHCI 4.23.2).
        if new.contains(.saveState) { status.remove(.saveRestoreError) }
        if new.contains(.restoreState) { status.insert(.saveRestoreError) }
    }

    private func write(
        _ value: UInt32, to register: MMIORegister.PortRegister, ofPort index: Int
    ) {
        hasPortWork = true
        switch register {
        case .statusAndControl: ports[index].writeStatusAndControl(value)
        case .powerManagement: ports[index].powerManagementStatus = value
        case .linkInformation: ports[index].linkInformation = value
        case .hardwareLPM: ports[index].hardwareLPMControl = value
        }
    }

    private func write(
        _ value: UInt32, to register: MMIORegister.InterrupterRegister, ofInterrupter index: Int,
        now: Duration
    ) {
        writtenInterrupters[bit: index] = true
        switch register {
        case .management: interrupters[index].writeManagement(value)
        case .moderation: interrupters[index].writeModeration(value, now: now)
        case .segmentTableSize: interrupters[index].writeSegmentCount(value)
        case .reserved: return
        case .segmentTableLow: interrupters[index].writeTableLow(value)
        case .segmentTableHigh: interrupters[index].writeTableHigh(value)
        case .dequeueLow: interrupters[index].writeDequeueLow(value)
        case .dequeueHigh: interrupters[index].writeDequeueHigh(value)
        }
    }

    // MARK: - Bytes

    /// Reads register space at any offset and width. Reserved bytes read as zero.
    func read(at offset: Int, into bytes: inout OutputSpan<UInt8>, now: Duration) {
        var position = offset
        while bytes.freeCapacity > 0 {
            let word = readWord(at: position & ~3, now: now)
            repeat {
                bytes.append(UInt8(truncatingIfNeeded: word >> UInt32((position & 3) * 8)))
                position &+= 1
            } while position & 3 != 0 && bytes.freeCapacity > 0
        }
    }

    private func readWord(at offset: Int, now: Duration) -> UInt32 {
        MMIORegister(offset: offset, capabilities: capabilities).map { read($0, now: now) } ?? 0
    }

    /// Writes register space at any offset and width. A write of a part of a register leaves its
    /// other bytes unchanged.
    func write(at offset: Int, from bytes: Span<UInt8>, now: Duration) {
        var index = 0
        while index < bytes.count {
            let position = offset &+ index
            var value: UInt32 = 0
            var mask: UInt32 = 0
            var byte = position & 3
            repeat {
                value |= UInt32(bytes[index]) << UInt32(byte * 8)
                mask |= 0xff << UInt32(byte * 8)
                byte += 1
                index += 1
            } while byte < 4 && index < bytes.count
            guard let register = MMIORegister(offset: position & ~3, capabilities: capabilities)
            else { continue }
            if mask != ~0 { value |= preservedBits(of: register, now: now) & ~mask }
            write(value, to: register, now: now)
        }
    }

    /// The value to write to the bytes of a register that a narrow write does not contain: its
    /// plain values, and zero for bits that act when written as one.
    private func preservedBits(of register: MMIORegister, now: Duration) -> UInt32 {
        switch register {
        case .usbStatus, .doorbell: 0
        case .commandRingLow:
            commandRing.isRunning ? 0 : commandRing.start.rawValue.lowHalf
        case .commandRingHigh: commandRing.start.rawValue.highHalf
        case .port(let index, .statusAndControl): ports[index].preservedStatusAndControl
        case .interrupter(_, .management): read(register, now: now) & ~1
        case .interrupter(_, .dequeueLow): read(register, now: now) & ~8
        case .capability, .usbCommand, .pageSize, .notificationControl, .contextArrayLow,
            .contextArrayHigh, .configure, .port, .microframeIndex, .interrupter:
            read(register, now: now)
        }
    }
}
