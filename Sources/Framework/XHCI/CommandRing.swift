// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import DequeModule
internal import Logging
internal import USB

/// The command ring (xHCI 4.6, 4.9.3): one command after the other, each with its event.
extension Controller {
    /// A command that takes memory back from a device, which may need a moment for it.
    struct WaitingCommand {
        let command: CommandTRB
        let address: UInt64
        let deadline: Duration
    }

    /// How a command ended.
    struct CommandResult {
        var code: CompletionCode
        /// The slot in the event; the command's own unless it is a new one.
        var slot: Int?

        init(_ code: CompletionCode, slot: Int? = nil) {
            self.code = code
            self.slot = slot
        }
    }

    func serviceCommands(_ budget: inout Int) {
        if registers.work.contains(.commandRing) {
            registers.work.remove(.commandRing)
            startCommandRing()
        }
        while registers.isRunning, registers.isCommandRingRunning, budget > 0 {
            guard !interrupters[0].isCongested else { return }
            if let waiting = waitingCommand {
                guard isQuiet(waiting.command) || now >= waiting.deadline else {
                    return stopIfAsked()
                }
                waitingCommand = nil
                complete(waiting.command, at: waiting.address)
                budget -= 1
                continue
            }
            guard !stopWasAsked else { return stopIfAsked() }
            guard let (command, address) = nextCommand() else { return }
            budget -= 1
            giveUpTransfers(for: command)
            guard isQuiet(command) else {
                waitingCommand = WaitingCommand(
                    command: command, address: address, deadline: now + Limits.drainTime)
                return
            }
            complete(command, at: address)
        }
        stopIfAsked()
    }

    private func startCommandRing() {
        guard !registers.isCommandRingRunning else { return }
        if registers.commandRingWritten {
            registers.commandRingWritten = false
            commandPosition = RingPosition(pointer: registers.commandRing)
        }
        registers.isCommandRingRunning = true
    }

    private var stopWasAsked: Bool {
        !registers.work.isDisjoint(with: [.commandStop, .commandAbort])
    }

    /// CRCR's CS and CA (xHCI 4.6.1.1, 4.6.1.2). Only a command that waits for a device can be
    /// aborted: all others are over before they can be.
    private func stopIfAsked() {
        guard stopWasAsked, registers.isCommandRingRunning else { return }
        if let waiting = waitingCommand {
            guard registers.work.contains(.commandAbort) else { return }
            waitingCommand = nil
            post(waiting.command, at: waiting.address, CommandResult(.commandAborted))
        }
        registers.work.subtract([.commandStop, .commandAbort])
        registers.isCommandRingRunning = false
        interrupters[0].post(
            .commandCompletion(.commandRingStopped, command: commandPosition.address, slot: 0))
    }

    private func nextCommand() -> (CommandTRB, UInt64)? {
        do throws(DMAError) {
            var links = 0
            while let trb = try commandPosition.fetch(memory) {
                let address = commandPosition.address
                guard trb.kind == .link else {
                    commandPosition.advance()
                    return (CommandTRB(trb: trb), address)
                }
                let link = LinkTRB(trb: trb)
                links += 1
                guard links <= Limits.consecutiveLinks else {
                    logger.debug("the command ring has nothing but links")
                    registers.failHost()
                    return nil
                }
                commandPosition.follow(link)
                if link.interruptOnCompletion {
                    interrupters[0].post(.commandCompletion(.success, command: address, slot: 0))
                }
            }
            return nil
        } catch {
            fail("command ring", error)
            return nil
        }
    }

    private func complete(_ command: CommandTRB, at address: UInt64) {
        post(command, at: address, perform(command))
    }

    private func post(_ command: CommandTRB, at address: UInt64, _ result: CommandResult) {
        guard registers.isRunning else { return }
        interrupters[0].post(
            .commandCompletion(result.code, command: address, slot: result.slot ?? command.slot))
    }

    private func perform(_ command: CommandTRB) -> CommandResult {
        do throws(DMAError) {
            switch command.trb.kind {
            case .enableSlot: return enableSlot()
            case .disableSlot: return try disableSlot(command)
            case .addressDevice: return try addressDevice(command)
            case .configureEndpoint: return try configureEndpoint(command)
            case .evaluateContext: return try evaluateContext(command)
            case .resetEndpoint: return resetEndpoint(command)
            case .stopEndpoint: return stopEndpoint(command)
            case .setTRDequeuePointer: return setTRDequeuePointer(command)
            case .resetDevice: return try resetDevice(command)
            case .getPortBandwidth: return getPortBandwidth(command)
            case .noOpCommand: return CommandResult(.success, slot: 0)
            // Virtual functions, bandwidth negotiation, latency tolerance, force header and extended
            // properties are optional and not offered (xHCI 5.3.6, 5.3.9).
            default: return CommandResult(.trbError)
            }
        } catch {
            fail("contexts of a command", error)
            return CommandResult(.trbError)
        }
    }

    // MARK: - What devices have to give back first

    private func giveUpTransfers(for command: CommandTRB) {
        guard let slot = slots[bounded: command.slot] else { return }
        switch command.trb.kind {
        case .stopEndpoint:
            guard let endpoint = slot.endpoints[bounded: command.endpoint],
                endpoint.state == .running
            else { return }
            for transfer in endpoint.inFlight where transfer.outcome == nil {
                device(of: endpoint)?.cancel(transfer.id)
            }
        case .disableSlot:
            for case let endpoint? in slot.endpoints { abandonTransfers(of: endpoint) }
        case .resetDevice:
            guard slot.state != .disabledOrEnabled else { return }
            for case let endpoint? in slot.endpoints { abandonTransfers(of: endpoint) }
        default:
            break
        }
        takeCompletions()
    }

    private func isQuiet(_ command: CommandTRB) -> Bool {
        guard let slot = slots[bounded: command.slot] else { return true }
        switch command.trb.kind {
        case .stopEndpoint, .setTRDequeuePointer, .resetEndpoint:
            return slot.endpoints[bounded: command.endpoint]?.isQuiet ?? true
        case .disableSlot, .resetDevice, .configureEndpoint:
            return slot.endpoints.allSatisfy { $0?.abandoned.isEmpty ?? true }
        default:
            return true
        }
    }
}
