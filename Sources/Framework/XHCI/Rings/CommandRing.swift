// SPDX-License-Identifier: Apache-2.0

internal import DMA

/// The command ring (xHCI 4.6.1, 4.9.3): where it stands, and the command that is being executed.
struct CommandRing {
    /// The next TRB to read.
    var position = RingPosition(rawValue: 0)
    /// The ring may have commands that were not read.
    var mayHaveMore = false
    /// A command whose event waits until a device has given back transfers: the guest may use their
    /// memory for something else as soon as it is told.
    var waiting: Waiting?

    struct Waiting {
        let pointer: UInt64
        let slot: Int
        let deadline: Duration
        let cause: Cause

        enum Cause {
            /// Stop Endpoint: how far each transfer came is part of its events.
            case stop(endpoint: Int)
            /// Another command, which is carried out already.
            case abandoned(CompletionCode, PortConnection)
        }
    }

    /// When a waiting command ends at the latest.
    var deadline: Duration? { waiting?.deadline }
}

extension Engine {
    /// Runs commands, in order and one at a time.
    ///
    /// - Returns: whether there may be more to run at once.
    mutating func serviceCommands(now: Duration) -> Bool {
        startCommandRing()
        finishWaiting(now: now)
        stopCommandRing()
        var budget = XHCILimits.commandsPerService
        while registers.command.contains(.run), commands.mayHaveMore, commands.waiting == nil,
            registers.commandRing.stopRequest == nil, bus.hasRoomForCommands
        {
            guard budget > 0 else { return true }
            budget -= 1
            guard let entry = nextCommand() else {
                commands.mayHaveMore = false
                break
            }
            // What was rung before the command was queued, while this waited for memory.
            answerDoorbells()
            guard registers.streamDoorbells.isEmpty else {
                commands.position = entry.position
                return true
            }
            execute(CommandTRB(entry.trb), at: entry.position.address, now: now)
            finishWaiting(now: now)
        }
        return registers.commandRing.stopRequest != nil && commands.waiting == nil
    }

    /// Doorbell 0 starts the ring where the register says.
    private mutating func startCommandRing() {
        guard registers.hasCommands else { return }
        registers.hasCommands = false
        commands.mayHaveMore = true
        guard !registers.commandRing.isRunning else { return }
        registers.commandRing.run()
        commands.position = registers.commandRing.start
    }

    /// Carries out CS and CA (xHCI 4.6.1.1, 4.6.1.2).
    private mutating func stopCommandRing() {
        guard let request = registers.commandRing.stopRequest else { return }
        if let waiting = commands.waiting {
            // CS lets the command finish, CA does not.
            guard request == .abort else { return }
            finish(waiting, aborted: true)
        }
        registers.commandRing.stop(at: commands.position)
        commands.mayHaveMore = false
        bus.post(
            .commandCompletion(
                .commandRingStopped, pointer: commands.position.address, slot: 0),
            to: 0)
    }

    /// The next command TRB that is the controller's.
    private mutating func nextCommand() -> RingEntry? {
        for _ in 0...XHCILimits.linkTRBsPerTD {
            let position = commands.position
            let fetched: TRB?
            do throws(DMAError) {
                fetched = try bus.fetch(at: position)
            } catch {
                bus.fail(error)
                return nil
            }
            guard let trb = fetched else { return nil }
            guard let link = LinkTRB(trb) else {
                commands.position = position.next
                return RingEntry(trb: trb, position: position)
            }
            commands.position = position.following(link)
            if TransferTRB(trb).interruptOnCompletion {
                complete(.success, at: position.address, slot: 0)
            }
        }
        bus.log("command ring: more than \(XHCILimits.linkTRBsPerTD) Link TRBs in a row")
        return nil
    }

    /// Posts the Command Completion Event.
    mutating func complete(_ code: CompletionCode, at pointer: UInt64, slot: Int) {
        if code != .success {
            bus.log("command TRB at \(GuestAddress(pointer)), slot \(slot): \(code.displayName)")
        }
        bus.post(.commandCompletion(code, pointer: pointer, slot: slot), to: 0)
    }

    // MARK: - Commands that take transfers from a device

    /// Begins Stop Endpoint (xHCI 4.6.9), which ends when the device has given back its transfers,
    /// or when patience ends.
    mutating func stopEndpoint(_ command: CommandTRB, at pointer: UInt64, now: Duration) {
        let slot = command.slot
        let index = command.endpoint
        let owner = slots[slot].identity
        slots[slot].endpoints[index]?.beginStop(owner)
        commands.waiting = CommandRing.Waiting(
            pointer: pointer, slot: slot, deadline: now + XHCILimits.cancelTimeout,
            cause: .stop(endpoint: index))
    }

    /// The controller halts: the command ends, but nothing is told any more.
    mutating func abandonWaiting() {
        if let waiting = commands.waiting { finish(waiting, aborted: false) }
    }

    private mutating func finishWaiting(now: Duration) {
        guard let waiting = commands.waiting else { return }
        listenToDevices()
        let isReady: Bool
        switch waiting.cause {
        case .stop(let endpoint):
            isReady = slots[waiting.slot].endpoints[endpoint]?.isReadyToStop ?? true
        case .abandoned(_, let connection):
            isReady = !connection.holdsUpCommands
        }
        guard isReady || waiting.deadline <= now else { return }
        finish(waiting, aborted: false)
    }

    private mutating func finish(_ waiting: CommandRing.Waiting, aborted: Bool) {
        commands.waiting = nil
        var code: CompletionCode
        switch waiting.cause {
        case .stop(let endpoint):
            let owner = slots[waiting.slot].identity
            let isStopped =
                slots[waiting.slot].endpoints[endpoint]?.finishStop(owner, &bus) ?? true
            code = isStopped ? .success : .contextStateError
        case .abandoned(let result, let connection):
            code = result
            connection.endPatience()
        }
        if aborted && code == .success { code = .commandAborted }
        complete(code, at: waiting.pointer, slot: waiting.slot)
    }
}
