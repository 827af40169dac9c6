// SPDX-License-Identifier: Apache-2.0

/// The commands (xHCI 4.6), but for those that read an Input Context.
///
/// Each changes the output contexts first and posts its event last.
extension Engine {
    mutating func execute(_ command: CommandTRB, at pointer: UInt64, now: Duration) {
        var slot = command.slot
        let code: CompletionCode
        // Taken before the command: Disable Slot forgets it.
        let connection = slots.indices.contains(slot) ? slots[slot].connection : nil
        switch command.trb.kind {
        case .noOperationCommand:
            code = .success
            slot = 0
        case .enableSlot:
            let free = enableSlot()
            slot = free ?? 0
            code = free == nil ? .noSlotsAvailableError : .success
        case .disableSlot: code = withSlot(command) { $0.disableSlot($1) }
        case .addressDevice: code = withSlot(command) { $0.addressDevice(command, $1) }
        case .configureEndpoint: code = withSlot(command) { $0.configureEndpoint(command, $1) }
        case .evaluateContext: code = withSlot(command) { $0.evaluateContext(command, $1) }
        case .resetDevice: code = withSlot(command) { $0.resetDevice($1) }
        case .resetEndpoint: code = withEndpoint(command) { $0.resetEndpoint(command, $1, $2) }
        case .setDequeuePointer:
            code = withEndpoint(command) { $0.setDequeuePointer(command, $1, $2) }
        case .stopEndpoint:
            code = withEndpoint(command) { engine, _, endpoint in
                endpoint.state == .running ? .success : .contextStateError
            }
            if code == .success {
                stopEndpoint(command, at: pointer, now: now)
                return
            }
        case .getPortBandwidth: code = getPortBandwidth(command)
        // Optional, and not offered: virtualization, bandwidth negotiation, latency tolerance and
        // forced headers. Unknown types have the same answer (xHCI 4.6).
        default: code = .trbError
        }
        if let connection, connection.holdsUpCommands {
            commands.waiting = CommandRing.Waiting(
                pointer: pointer, slot: slot, deadline: now + XHCILimits.cancelTimeout,
                cause: .abandoned(code, connection))
            return
        }
        complete(code, at: pointer, slot: slot)
    }

    /// Runs a command of an enabled slot.
    private mutating func withSlot(
        _ command: CommandTRB, _ body: (inout Engine, Int) -> CompletionCode
    ) -> CompletionCode {
        let slot = command.slot
        guard slot > 0, slot < slots.count, slots[slot].state != nil else {
            return .slotNotEnabledError
        }
        return body(&self, slot)
    }

    /// Runs a command of an endpoint that is configured.
    private mutating func withEndpoint(
        _ command: CommandTRB, _ body: (inout Engine, Int, Endpoint) -> CompletionCode
    ) -> CompletionCode {
        withSlot(command) { engine, slot in
            guard command.endpoint > 0 else { return .trbError }
            guard let endpoint = engine.slots[slot].endpoints[command.endpoint] else {
                return .endpointNotEnabledError
            }
            return body(&engine, slot, endpoint)
        }
    }

    // MARK: - Slots

    private mutating func enableSlot() -> Int? {
        let enabled = registers.enabledSlots
        guard let slot = (1...max(1, enabled)).first(where: { slots[$0].state == nil }),
            slot <= enabled
        else { return nil }
        slots[slot].enable()
        return slot
    }

    private mutating func disableSlot(_ slot: Int) -> CompletionCode {
        slots[slot].disable(bus)
        return .success
    }

    /// Reset Device (xHCI 4.6.11): the device's port was reset, so all but the default control
    /// endpoint are gone.
    private mutating func resetDevice(_ slot: Int) -> CompletionCode {
        guard slots[slot].state == .addressed || slots[slot].state == .configured else {
            return .contextStateError
        }
        disableEndpoints(of: slot, from: 2)
        slots[slot].context.contextEntries = 1
        slots[slot].context.deviceAddress = 0
        slots[slot].enter(.default, bus)
        return .success
    }

    /// Drops endpoints and shows it in their output contexts.
    mutating func disableEndpoints(of slot: Int, from first: Int) {
        for index in first...31 where slots[slot].endpoints[index] != nil {
            if let address = slots[slot].contextAddress(of: index) {
                bus.store(EndpointContext(), at: address)
            }
        }
        slots[slot].dropEndpoints(from: first)
    }

    // MARK: - Endpoints

    private mutating func resetEndpoint(
        _ command: CommandTRB, _ slot: Int, _ endpoint: Endpoint
    ) -> CompletionCode {
        guard endpoint.state == .halted else { return .contextStateError }
        let owner = slots[slot].identity
        slots[slot].endpoints[endpoint.index]?.reset(
            preservingTransfer: command.flag, owner, bus)
        return .success
    }

    private mutating func setDequeuePointer(
        _ command: CommandTRB, _ slot: Int, _ endpoint: Endpoint
    ) -> CompletionCode {
        guard endpoint.state == .stopped || endpoint.state == .error else {
            return .contextStateError
        }
        return slots[slot].endpoints[endpoint.index]?.setDequeuePointer(command, bus)
            ?? .endpointNotEnabledError
    }

    // MARK: - Bandwidth

    /// Get Port Bandwidth (xHCI 4.6.15): what there is for periodic transfers, in percent. The bus
    /// is imagined, so it is always all of it.
    private func getPortBandwidth(_ command: CommandTRB) -> CompletionCode {
        // The root hub has no slot; hubs below it are not known here.
        guard command.slot == 0 else { return .parameterError }
        let isSuperSpeed = command.speed >= 4
        guard (1...5).contains(command.speed) else { return .parameterError }
        for port in registers.ports.indices {
            let matches = registers.ports[port].isSuperSpeed == isSuperSpeed
            let percent: UInt8 = matches ? (isSuperSpeed || command.speed < 3 ? 90 : 80) : 0
            bus.store(percent, at: command.bandwidthContext &+ UInt64(port + 1))
        }
        return .success
    }
}
