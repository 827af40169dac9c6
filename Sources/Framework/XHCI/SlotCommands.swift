// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import Logging
internal import USB

/// Commands about device slots (xHCI 4.6.3 to 4.6.7, 4.6.11).
///
/// Input contexts are copied once and judged as a copy; output contexts are written before the
/// event tells of them.
extension Controller {
    func enableSlot() -> CommandResult {
        for id in 1..<slots.count where id <= registers.enabledSlots && slots[id] == nil {
            slots[id] = Slot(id: id)
            registers.clearDoorbells(slot: id)
            return CommandResult(.success, slot: id)
        }
        return CommandResult(.noSlotsAvailable, slot: 0)
    }

    func disableSlot(_ command: CommandTRB) throws(DMAError) -> CommandResult {
        guard let slot = slots[bounded: command.slot] else { return missing(command) }
        forget(slot)
        slot.context.state = .disabledOrEnabled
        try writeContext(of: slot)
        return CommandResult(.success)
    }

    private func forget(_ slot: Slot) {
        for case let endpoint? in slot.endpoints {
            device(of: endpoint)?.resetEndpoint(endpoint.address)
        }
        slots[slot.id] = nil
        registers.clearDoorbells(slot: slot.id)
    }

    func addressDevice(_ command: CommandTRB) throws(DMAError) -> CommandResult {
        guard let slot = slots[bounded: command.slot] else { return missing(command) }
        let isAllowed =
            command.blockSetAddress
            ? slot.state == .disabledOrEnabled
            : slot.state == .disabledOrEnabled || slot.state == .default
        guard isAllowed else { return CommandResult(.contextStateError) }
        let input = try InputContext(at: command.inputContext, memory: memory)
        guard input.control.add & 3 == 3, input.control.drop == 0 else {
            return CommandResult(.parameterError)
        }
        var slotContext = input.slot
        var endpoint = try input.endpoint(1, memory: memory)
        let port = slotContext.rootHubPort - 1
        guard registers.ports.indices.contains(port), slotContext.routeString == 0,
            endpoint.kind == .control, endpoint.maxPacketSize > 0,
            Int(slotContext.interrupterTarget) < interrupters.count
        else { return CommandResult(.parameterError) }
        guard hub.isUsable(port) else { return CommandResult(.usbTransactionError) }

        let pointer = try memory.load(
            UInt64.self, at: GuestAddress(registers.deviceContexts) + slot.id * 8)
        slot.contextAddress = GuestAddress(pointer & ~0x3f)
        slot.portIndex = port
        slotContext.contextEntries = 1
        slotContext.state = command.blockSetAddress ? .default : .addressed
        slotContext.deviceAddress = command.blockSetAddress ? 0 : UInt32(slot.id)
        slot.context = slotContext
        endpoint.state = .running
        try enable(endpoint, dci: 1, of: slot)
        try writeContext(of: slot)
        return CommandResult(.success)
    }

    func configureEndpoint(_ command: CommandTRB) throws(DMAError) -> CommandResult {
        guard let slot = slots[bounded: command.slot] else { return missing(command) }
        guard slot.state == .addressed || slot.state == .configured else {
            return CommandResult(.contextStateError)
        }
        if command.deconfigure {
            for dci in 2..<32 { try disable(dci, of: slot) }
            slot.context.contextEntries = 1
            slot.context.state = .addressed
            try writeContext(of: slot)
            return CommandResult(.success)
        }
        let input = try InputContext(at: command.inputContext, memory: memory)
        // The slot's and the default control endpoint's flags have no meaning here but A0.
        guard input.control.drop & 3 == 0, input.control.add & 3 == 1 else {
            return CommandResult(.parameterError)
        }
        var additions: [(dci: Int, context: EndpointContext)] = []
        for dci in 2..<32 where input.control.add[bit: dci] {
            let context = try input.endpoint(dci, memory: memory)
            let isReplaced = input.control.drop[bit: dci]
            guard context.isValid(dci: dci), isReplaced || slot.endpoints[dci] == nil,
                dci <= input.slot.contextEntries
            else { return CommandResult(.parameterError) }
            additions.append((dci, context))
        }
        for dci in 2..<32 where input.control.drop[bit: dci] { try disable(dci, of: slot) }
        for (dci, context) in additions {
            var context = context
            context.state = .running
            try enable(context, dci: dci, of: slot)
            if let endpoint = slot.endpoints[dci] {
                device(of: endpoint)?.resetEndpoint(endpoint.address)
            }
        }
        let last = slot.endpoints.lastIndex { $0 != nil } ?? 1
        slot.context.contextEntries = max(last, 1)
        slot.context.state = last > 1 ? .configured : .addressed
        try writeContext(of: slot)
        return CommandResult(.success)
    }

    func evaluateContext(_ command: CommandTRB) throws(DMAError) -> CommandResult {
        guard let slot = slots[bounded: command.slot] else { return missing(command) }
        guard slot.state != .disabledOrEnabled else { return CommandResult(.contextStateError) }
        let input = try InputContext(at: command.inputContext, memory: memory)
        guard input.control.drop == 0, input.control.add & 3 != 0 else {
            return CommandResult(.parameterError)
        }
        if input.control.add[bit: 0] {
            guard Int(input.slot.interrupterTarget) < interrupters.count else {
                return CommandResult(.parameterError)
            }
            slot.context.maxExitLatency = input.slot.maxExitLatency
            slot.context.interrupterTarget = input.slot.interrupterTarget
            try writeContext(of: slot)
        }
        if input.control.add[bit: 1], let endpoint = slot.endpoints[1] {
            let context = try input.endpoint(1, memory: memory)
            guard context.maxPacketSize > 0 else { return CommandResult(.parameterError) }
            endpoint.context.maxPacketSize = context.maxPacketSize
            writeContext(of: endpoint)
        }
        return CommandResult(.success)
    }

    func resetDevice(_ command: CommandTRB) throws(DMAError) -> CommandResult {
        guard let slot = slots[bounded: command.slot] else { return missing(command) }
        guard slot.state == .addressed || slot.state == .configured else {
            return CommandResult(.contextStateError)
        }
        for dci in 2..<32 { try disable(dci, of: slot) }
        slot.context.contextEntries = 1
        slot.context.deviceAddress = 0
        slot.context.state = .default
        try writeContext(of: slot)
        return CommandResult(.success)
    }

    /// Every port has all of its bandwidth: none of it is shared (xHCI 4.6.15).
    func getPortBandwidth(_ command: CommandTRB) -> CommandResult {
        let start = GuestAddress(command.portBandwidthContext)
        do throws(DMAError) {
            for port in 0...registers.ports.count {
                try memory.store(UInt8(port == 0 ? 0 : 80), at: start + port)
            }
            return CommandResult(.success)
        } catch {
            logger.debug("port bandwidth context: \(error)")
            return CommandResult(.parameterError)
        }
    }

    // MARK: - Help

    /// A command for a slot that is not there.
    func missing(_ command: CommandTRB) -> CommandResult {
        CommandResult(
            slots.indices.contains(command.slot) && command.slot > 0
                ? .slotNotEnabled : .trbError)
    }

    private func enable(
        _ context: EndpointContext, dci: Int, of slot: Slot
    ) throws(DMAError) {
        guard let address = slot.endpointContextAddress(dci) else { return }
        let endpoint = Endpoint(
            slot: slot.id, dci: dci, context: context, contextAddress: address)
        slot.endpoints[dci] = endpoint
        // All of the context, reserved words too, is the driver's.
        try memory.store(context, at: address)
    }

    private func disable(_ dci: Int, of slot: Slot) throws(DMAError) {
        guard let endpoint = slot.endpoints[dci] else { return }
        abandonTransfers(of: endpoint)
        device(of: endpoint)?.resetEndpoint(endpoint.address)
        slot.endpoints[dci] = nil
        endpoint.context.state = .disabled
        try memory.store(endpoint.context.word0, at: endpoint.contextAddress)
    }

    private func writeContext(of slot: Slot) throws(DMAError) {
        guard let address = slot.contextAddress else { return }
        try memory.store(slot.context, at: address)
    }
}

/// An Input Context (xHCI 6.2.5), whose control and slot parts are read at once.
struct InputContext {
    let control: InputControlContext
    let slot: SlotContext
    private let start: GuestAddress

    init(at address: UInt64, memory: GuestMemory) throws(DMAError) {
        start = GuestAddress(address)
        control = try memory.load(at: start)
        slot = try memory.load(at: start + contextSize)
    }

    /// The input context of an endpoint; read once by each caller.
    func endpoint(_ dci: Int, memory: GuestMemory) throws(DMAError) -> EndpointContext {
        try memory.load(at: start + (dci + 1) * contextSize)
    }
}

extension EndpointContext {
    /// Whether an endpoint can be made of this (xHCI 6.2.3).
    func isValid(dci: Int) -> Bool {
        guard kind != .invalid, maxPacketSize > 0, maxPacketSize <= 1024, interval <= 15,
            maxBurst <= 15
        else { return false }
        // Streams are not offered (MaxPSASize is 0).
        guard maxPrimaryStreams == 0 else { return false }
        if kind == .control { return dci % 2 == 1 }
        return kind.isIn == (dci % 2 == 1)
    }
}
