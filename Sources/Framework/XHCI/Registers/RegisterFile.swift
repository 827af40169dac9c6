// SPDX-License-Identifier: Apache-2.0

/// All registers (xHCI chapter 5), with the work that writes to them leave behind.
///
/// The guest reaches this at any moment, also while the engine waits for guest memory. So every
/// access is short, and nobody holds a part of it while calling out.
final class RegisterFile {
    let capabilities: Capabilities
    private let capabilityRegisters: CapabilityRegisters

    /// Set by writes: the next `service` has something to look at.
    var hasWork = false
    /// Set with everything that happens to a port.
    var hasPortWork = true

    var command: USBCommand = []
    var status: USBStatus = .reset
    private var notificationControl: UInt32 = 0
    var commandRing = CommandRingControl()
    /// DCBAAP.
    private(set) var contextArray: UInt64 = 0
    private var configure: UInt32 = 0
    var ports: [PortRegisters]
    var interrupters: [InterrupterRegisters]
    /// Interrupters that have something to do when their registers change, one bit each.
    var busyInterrupters: UInt16 = 0
    /// Interrupters whose event ring registers were written, one bit each.
    var movedEventRings: UInt16 = 0
    /// The endpoints whose doorbells were rung.
    var doorbells: EndpointSet
    /// The same of streams.
    var streamDoorbells = StreamDoorbells()
    /// Doorbell 0 was rung: there are commands.
    var hasCommands = false
    var microframes = MicroframeClock()

    init(_ capabilities: Capabilities) {
        self.capabilities = capabilities
        capabilityRegisters = CapabilityRegisters(capabilities)
        ports = Self.freshPorts(capabilities)
        interrupters = Self.freshInterrupters(capabilities)
        doorbells = EndpointSet(slots: capabilities.slots)
    }

    /// Back to the values after power-on; what is plugged in shows as newly connected.
    func reset() {
        command = []
        status = .reset
        notificationControl = 0
        commandRing = CommandRingControl()
        contextArray = 0
        configure = 0
        let attached = ports.map(\.attached)
        ports = Self.freshPorts(capabilities)
        for (port, speed) in attached.enumerated() {
            if let speed { ports[port].connect(speed) }
        }
        interrupters = Self.freshInterrupters(capabilities)
        busyInterrupters = 0
        movedEventRings = 0
        doorbells = EndpointSet(slots: capabilities.slots)
        streamDoorbells = StreamDoorbells()
        hasCommands = false
        microframes = MicroframeClock()
        hasWork = true
        hasPortWork = true
    }

    private static func freshPorts(_ capabilities: Capabilities) -> [PortRegisters] {
        (0..<capabilities.ports).map {
            PortRegisters(isSuperSpeed: $0 >= capabilities.usb2Ports)
        }
    }

    private static func freshInterrupters(_ capabilities: Capabilities) -> [InterrupterRegisters] {
        Array(repeating: InterrupterRegisters(), count: capabilities.interrupters)
    }

    /// Something happened at a port's connector.
    func markPortWork() {
        hasWork = true
        hasPortWork = true
    }

    /// PED: transfers reach the device.
    func isPortEnabled(_ port: Int) -> Bool { ports[port].isEnabled }

    /// MaxSlotsEn, as far as there are so many slots.
    var enabledSlots: Int { min(Int(configure), capabilities.slots) }

    /// An access to guest memory failed where there is no other way to tell (xHCI 4.10.2.6): the
    /// controller stops.
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
        case .pageSize: 1  // 4 KiB
        case .notificationControl: notificationControl
        case .commandRingLow: commandRing.lowHalf
        case .commandRingHigh: 0
        case .contextArrayLow: UInt32(truncatingIfNeeded: contextArray)
        case .contextArrayHigh: UInt32(truncatingIfNeeded: contextArray >> 32)
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
        case .segmentTableLow: UInt32(truncatingIfNeeded: interrupter.segmentTable)
        case .segmentTableHigh: UInt32(truncatingIfNeeded: interrupter.segmentTable >> 32)
        case .dequeueLow: interrupter.dequeueLow
        case .dequeueHigh: UInt32(truncatingIfNeeded: interrupter.dequeuePointer >> 32)
        }
    }

    func write(_ value: UInt32, to register: MMIORegister, now: Duration) {
        if case .interrupter(let index, _) = register {
            // Drivers write these with each interrupt, usually when all is told.
            hasWork = hasWork || busyInterrupters[bit: index]
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
        case .contextArrayLow:
            contextArray = contextArray & ~0xffff_ffff | UInt64(value & ~0x3f)
        case .contextArrayHigh: contextArray = contextArray & 0xffff_ffff | UInt64(value) << 32
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
        // State cannot be restored, and SRE makes the driver begin anew.
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
        movedEventRings[bit: index] = true
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

    func write(at offset: Int, from bytes: Span<UInt8>, now: Duration) {
        var index = 0
        while index < bytes.count {
            let position = offset &+ index
            var value: UInt32 = 0
            var mask: UInt32 = 0
            var place = position & 3
            repeat {
                value |= UInt32(bytes[index]) << UInt32(place * 8)
                mask |= 0xff << UInt32(place * 8)
                place += 1
                index += 1
            } while place < 4 && index < bytes.count
            guard let register = MMIORegister(offset: position & ~3, capabilities: capabilities)
            else { continue }
            if mask != ~0 { value |= kept(register, now: now) & ~mask }
            write(value, to: register, now: now)
        }
    }

    /// What a write of other bytes of the register must not change: its plain values, without the
    /// bits that act when written as one.
    private func kept(_ register: MMIORegister, now: Duration) -> UInt32 {
        switch register {
        case .usbStatus, .doorbell: 0
        case .commandRingLow:
            UInt32(truncatingIfNeeded: commandRing.isRunning ? 0 : commandRing.start.rawValue)
        case .commandRingHigh: UInt32(truncatingIfNeeded: commandRing.start.address >> 32)
        case .port(let index, .statusAndControl): ports[index].keptStatusAndControl
        case .interrupter(_, .management): read(register, now: now) & ~1
        case .interrupter(_, .dequeueLow): read(register, now: now) & ~8
        case .capability, .usbCommand, .pageSize, .notificationControl, .contextArrayLow,
            .contextArrayHigh, .configure, .port, .microframeIndex, .interrupter:
            read(register, now: now)
        }
    }
}
