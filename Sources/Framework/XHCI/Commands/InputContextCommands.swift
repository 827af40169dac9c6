// SPDX-License-Identifier: Apache-2.0

internal import USB

/// Execution of the commands that read an Input Context (xHCI 4.6.5-4.6.7, 6.2.5).
///
/// Each part of the Input Context is read once, and all of it is checked before any state changes.
extension Engine {
    // MARK: - Address Device

    /// Executes Address Device (xHCI 4.6.5). The bus is virtual, so no SET_ADDRESS request reaches
    /// the device.
    mutating func addressDevice(_ command: CommandTRB, _ slot: Int) -> CompletionCode {
        let blocksRequest = command.blockSetAddressRequest
        let state = slots[slot].state
        guard state == .enabled || (state == .default && !blocksRequest) else {
            return .contextStateError
        }
        let input = InputContext(address: command.inputContext)
        guard let control = bus.load(InputControlContext.self, at: input.address),
            var context = bus.load(SlotContext.self, at: input.address(of: 0)),
            var endpoint = bus.load(EndpointContext.self, at: input.address(of: 1)),
            let output = bus.load(
                UInt64.self, at: registers.contextArray &+ UInt64(slot * 8))
        else { return .parameterError }
        guard control.add & 3 == 3, control.drop == 0,
            (1...registers.ports.count).contains(context.rootHubPort),
            context.interrupter < registers.interrupters.count,
            endpoint.kind == .control, endpoint.maxPacketSize > 0,
            endpoint.maxPrimaryStreams == 0, output & ~0x3f != 0
        else { return .parameterError }

        let port = context.rootHubPort - 1
        // A Route String names a device behind an external hub; no hub is exposed to the guest.
        let connection = context.routeString == 0 ? hub.connection(at: port) : nil
        if !blocksRequest {
            guard connection != nil, registers.ports[port].isEnabled else {
                return .usbTransactionError
            }
        }
        slots[slot].dropEndpoints(from: 1, bus)
        slots[slot].contextAddress = output & ~0x3f
        slots[slot].connection = connection
        endpoint.state = .running
        let address = slots[slot].contextAddress(of: 1) ?? 0
        bus.store(endpoint, at: address)
        slots[slot].endpoints[1] = Endpoint(
            index: 1, context: endpoint, contextAddress: address)
        context.contextEntries = max(1, context.contextEntries)
        context.deviceAddress = blocksRequest ? 0 : UInt32((slot - 1) % 127 + 1)
        slots[slot].context = context
        slots[slot].setState(blocksRequest ? .default : .addressed, bus)
        return .success
    }

    // MARK: - Configure Endpoint

    /// Executes Configure Endpoint (xHCI 4.6.6).
    mutating func configureEndpoint(_ command: CommandTRB, _ slot: Int) -> CompletionCode {
        guard slots[slot].state == .addressed || slots[slot].state == .configured else {
            return .contextStateError
        }
        // With DC set, the Input Context is not read.
        if command.deconfigure {
            disableEndpoints(of: slot, from: 2)
            slots[slot].context.contextEntries = 1
            slots[slot].setState(.addressed, bus)
            return .success
        }
        let input = InputContext(address: command.inputContext)
        guard let control = bus.load(InputControlContext.self, at: input.address) else {
            return .parameterError
        }
        // This command cannot drop the Slot Context, nor drop or add the Default Control Endpoint.
        guard control.drop & 3 == 0, control.add & 2 == 0 else { return .parameterError }
        var slotContext = slots[slot].context
        if control.add[bit: 0] {
            guard let context = bus.load(SlotContext.self, at: input.address(of: 0)) else {
                return .parameterError
            }
            slotContext.contextEntries = context.contextEntries
            slotContext.route[bits: 25...26] = context.route[bits: 25...26]  // MTT, Hub
        }
        var added: [(index: Int, context: EndpointContext)] = []
        for index in 2...31 where control.add[bit: index] {
            guard let context = bus.load(EndpointContext.self, at: input.address(of: index)),
                isValid(context, index: index)
            else { return .parameterError }
            added.append((index, context))
        }
        replaceEndpoints(of: slot, dropping: control.drop, adding: added)
        let last = slots[slot].endpoints.lastIndex { $0 != nil } ?? 1
        slotContext.contextEntries = max(last, control.add[bit: 0] ? slotContext.contextEntries : 0)
        slotContext.deviceAddress = slots[slot].context.deviceAddress
        slots[slot].context = slotContext
        slots[slot].setState(last > 1 ? .configured : .addressed, bus)
        return .success
    }

    /// Whether Configure Endpoint may add an Endpoint Context at a DCI.
    ///
    /// Only an isochronous endpoint may have a Max Packet Size of 0: in alternate setting 0 such an
    /// endpoint has no bandwidth (USB 2.0 5.6.3).
    private func isValid(_ context: EndpointContext, index: Int) -> Bool {
        context.kind.fits(index: index)
            && (context.maxPacketSize > 0 || context.kind.isIsochronous)
            && (context.maxPrimaryStreams == 0
                || context.kind.isBulk
                    && context.maxPrimaryStreams <= Capabilities.maxPrimaryStreamsLog2)
            && (!context.kind.isPeriodic || context.interval <= EndpointContext.longestInterval)
    }

    /// Drops endpoints, then adds others and stores their output contexts. An enabled endpoint that
    /// is added without being dropped is replaced.
    private mutating func replaceEndpoints(
        of slot: Int, dropping drop: UInt32, adding added: [(index: Int, context: EndpointContext)]
    ) {
        let owner = slots[slot].identity
        for index in 2...31 where drop[bit: index] { disableEndpoint(index, of: slot) }
        for (index, original) in added {
            guard let address = slots[slot].contextAddress(of: index) else { continue }
            slots[slot].endpoints[index]?.drop(owner, bus)
            var context = original
            context.state = .running
            bus.store(context, at: address)
            let endpoint = Endpoint(index: index, context: context, contextAddress: address)
            slots[slot].endpoints[index] = endpoint
            if let streams = endpoint.streams {
                owner.connection?.device?.setStreams(streams.count, for: endpoint.address)
            }
        }
    }

    // MARK: - Evaluate Context

    /// Executes Evaluate Context (xHCI 4.6.7), which changes Max Exit Latency and Interrupter
    /// Target of the slot and Max Packet Size of the Default Control Endpoint.
    mutating func evaluateContext(_ command: CommandTRB, _ slot: Int) -> CompletionCode {
        guard slots[slot].state != .enabled, let output = slots[slot].contextAddress(of: 1) else {
            return .contextStateError
        }
        let input = InputContext(address: command.inputContext)
        guard let control = bus.load(InputControlContext.self, at: input.address),
            control.drop == 0
        else { return .parameterError }
        var slotContext = slots[slot].context
        if control.add[bit: 0] {
            guard let context = bus.load(SlotContext.self, at: input.address(of: 0)),
                context.interrupter < registers.interrupters.count
            else { return .parameterError }
            slotContext.maxExitLatency = context.maxExitLatency
            slotContext.interrupter = context.interrupter
        }
        var packetSize: UInt32?
        if control.add[bit: 1] {
            guard let context = bus.load(EndpointContext.self, at: input.address(of: 1)),
                context.maxPacketSize > 0
            else { return .parameterError }
            packetSize = context.maxPacketSize
        }
        if let packetSize, var characteristics = bus.load(UInt32.self, at: output &+ 4) {
            characteristics[bits: 16...31] = packetSize
            bus.store(characteristics, at: output &+ 4)
        }
        slots[slot].context = slotContext
        slots[slot].storeContext(bus)
        return .success
    }
}
