// SPDX-License-Identifier: Apache-2.0

internal import DMA

/// The command ring (xHCI 4.6.1, 4.9.3): where it stands, and the command that is being executed.
struct CommandRing {
    /// The next TRB to read.
    var position = RingPosition(rawValue: 0)
    /// The ring may have commands that were not read.
    var mayHaveMore = false
    /// Stop Endpoint, while a device has not given back its transfers.
    var waiting: WaitingStop?

    struct WaitingStop {
        let pointer: UInt64
        let slot: Int
        let endpoint: Int
        let deadline: Duration
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
        finishWaitingStop(now: now)
        stopCommandRing()
        var budget = Limits.commandsPerService
        while registers.commandRing.isRunning, commands.mayHaveMore, commands.waiting == nil,
            registers.commandRing.stopRequest == nil, bus.hasRoomForCommands
        {
            guard budget > 0 else { return true }
            budget -= 1
            guard let entry = nextCommand() else {
                commands.mayHaveMore = false
                break
            }
            execute(CommandTRB(entry.trb), at: entry.position.address, now: now)
            finishWaitingStop(now: now)
        }
        return registers.commandRing.stopRequest != nil && commands.waiting == nil
    }

    /// Doorbell 0 starts the ring, at the place that was written if there is a new one.
    private mutating func startCommandRing() {
        guard registers.hasCommands else { return }
        registers.hasCommands = false
        commands.mayHaveMore = true
        guard !registers.commandRing.isRunning else { return }
        registers.commandRing.isRunning = true
        if registers.commandRing.isStartNew {
            registers.commandRing.isStartNew = false
            commands.position = registers.commandRing.start
        }
    }

    /// Carries out CS and CA (xHCI 4.6.1.1, 4.6.1.2).
    private mutating func stopCommandRing() {
        guard let request = registers.commandRing.stopRequest else { return }
        if let waiting = commands.waiting {
            // CS lets the command finish, CA does not.
            guard request == .abort else { return }
            finish(waiting, code: .commandAborted)
        }
        registers.commandRing.stopRequest = nil
        registers.commandRing.isRunning = false
        commands.mayHaveMore = false
        bus.post(
            .commandCompletion(
                .commandRingStopped, pointer: commands.position.address, slot: 0),
            to: 0)
    }

    /// The next command TRB that is the controller's.
    private mutating func nextCommand() -> RingEntry? {
        for _ in 0...Limits.linksInARow {
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
        bus.note("the command ring is a loop of links")
        return nil
    }

    /// Posts the Command Completion Event.
    mutating func complete(_ code: CompletionCode, at pointer: UInt64, slot: Int) {
        if code != .success {
            bus.note("command at \(pointer) for slot \(slot): \(code)")
        }
        bus.post(.commandCompletion(code, pointer: pointer, slot: slot), to: 0)
    }

    // MARK: - Stop Endpoint

    /// Begins Stop Endpoint (xHCI 4.6.9), which ends when the device has given back its transfers,
    /// or when patience ends.
    mutating func stopEndpoint(_ command: CommandTRB, at pointer: UInt64, now: Duration) {
        let slot = command.slot
        let index = command.endpoint
        let owner = slots[slot].identity
        slots[slot].endpoints[index]?.beginStop(owner)
        commands.waiting = CommandRing.WaitingStop(
            pointer: pointer, slot: slot, endpoint: index,
            deadline: now + Limits.cancelPatience)
    }

    private mutating func finishWaitingStop(now: Duration) {
        guard let waiting = commands.waiting else { return }
        listenToDevices()
        let isReady = slots[waiting.slot].endpoints[waiting.endpoint]?.isReadyToStop ?? true
        guard isReady || waiting.deadline <= now else { return }
        finish(waiting, code: .success)
    }

    /// The controller halts: the endpoint stops, but nothing is told any more.
    mutating func abandonWaitingStop() {
        if let waiting = commands.waiting { finish(waiting, code: .success) }
    }

    private mutating func finish(_ waiting: CommandRing.WaitingStop, code: CompletionCode) {
        commands.waiting = nil
        let owner = slots[waiting.slot].identity
        let isStopped =
            slots[waiting.slot].endpoints[waiting.endpoint]?.finishStop(owner, &bus) ?? true
        complete(
            isStopped ? code : .contextStateError, at: waiting.pointer, slot: waiting.slot)
    }
}
