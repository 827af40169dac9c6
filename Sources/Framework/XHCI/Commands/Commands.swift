// SPDX-License-Identifier: Apache-2.0

/// Execution of commands (xHCI 4.6); those that read an Input Context are in InputContextCommands.
///
/// A command updates the output contexts before its Command Completion Event is posted.
extension Engine {
    /// Executes a command and posts its Command Completion Event. Stop Endpoint posts its event
    /// later, when the device has completed the endpoint's transfers.
    ///
    /// - Parameter pointer: the address of the command TRB.
    mutating func execute(_ command: CommandTRB, at pointer: UInt64, now: Duration) {
        var slot = command.slot
        let code: CompletionCode
        switch command.trb.kind {
        case .noOpCommand:
            code = .success
            slot = 0
        case .enableSlot:
            let enabled = enableSlot()
            slot = enabled ?? 0
            code = enabled == nil ? .noSlotsAvailableError : .success
        case .disableSlot: code = withSlot(command) { $0.disableSlot($1) }
        case .addressDevice: code = withSlot(command) { $0.addressDevice(command, $1) }
        case .configureEndpoint: code = withSlot(command) { $0.configureEndpoint(command, $1) }
        case .evaluateContext: code = withSlot(command) { $0.evaluateContext(command, $1) }
        case .resetDevice: code = withSlot(command) { $0.resetDevice($1) }
        case .resetEndpoint: code = withEndpoint(command) { $0.resetEndpoint(command, $1, $2) }
        case .setTRDequeuePointer:
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
        // Force Event, Negotiate Bandwidth, Set Latency Tolerance Value, Force Header and the
        // Extended Property commands are optional and not implemented. Undefined types also get a
        // TRB Error (xHCI 4.6).
        default: code = .trbError
        }
        complete(code, at: pointer, slot: slot)
    }

    /// Executes a command for a slot; Slot Not Enabled Error if the slot is disabled.
    private mutating func withSlot(
        _ command: CommandTRB, _ body: (inout Engine, Int) -> CompletionCode
    ) -> CompletionCode {
        let slot = command.slot
        guard slot > 0, slot < slots.count, slots[slot].state != nil else {
            return .slotNotEnabledError
        }
        return body(&self, slot)
    }

    /// Executes a command for an endpoint; Endpoint Not Enabled Error if the endpoint is disabled.
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

    /// Enables the first disabled slot; `nil` if all slots up to MaxSlotsEn are enabled.
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

    /// Executes Reset Device (xHCI 4.6.11): disables all endpoints except the Default Control
    /// Endpoint.
    private mutating func resetDevice(_ slot: Int) -> CompletionCode {
        guard slots[slot].state == .addressed || slots[slot].state == .configured else {
            return .contextStateError
        }
        disableEndpoints(of: slot, from: 2)
        slots[slot].context.contextEntries = 1
        slots[slot].context.deviceAddress = 0
        slots[slot].setState(.default, bus)
        return .success
    }

    /// Disables the endpoints from a DCI on, in their output contexts too.
    mutating func disableEndpoints(of slot: Int, from first: Int) {
        for index in first...31 { disableEndpoint(index, of: slot) }
    }

    /// Disables an endpoint, in its output context too, and cancels its transfers without events.
    mutating func disableEndpoint(_ index: Int, of slot: Int) {
        guard slots[slot].endpoints[index] != nil else { return }
        let owner = slots[slot].identity
        slots[slot].endpoints[index]?.drop(owner, bus)
        slots[slot].endpoints[index] = nil
        if let address = slots[slot].contextAddress(of: index) {
            bus.store(EndpointContext(), at: address)
        }
    }

    // MARK: - Endpoints

    private mutating func resetEndpoint(
        _ command: CommandTRB, _ slot: Int, _ endpoint: Endpoint
    ) -> CompletionCode {
        guard endpoint.state == .halted else { return .contextStateError }
        let owner = slots[slot].identity
        slots[slot].endpoints[endpoint.index]?.reset(
            preservingTransfer: command.transferStatePreserve, owner, bus)
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

    /// Executes Get Port Bandwidth (xHCI 4.6.15): the percentage of bandwidth available for
    /// periodic transfers, for each root hub port. The bus is virtual, so it is always the whole
    /// periodic share.
    private func getPortBandwidth(_ command: CommandTRB) -> CompletionCode {
        // Hub Slot ID 0 is the root hub. External hubs are not exposed to the guest.
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
