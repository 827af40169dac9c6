// SPDX-License-Identifier: Apache-2.0

internal import DMA

/// The command ring (xHCI 4.6.1, 4.9.3): its dequeue pointer, and the Stop Endpoint command in
/// progress.
struct CommandRing {
    /// The next TRB to read.
    var dequeuePointer = RingPosition(rawValue: 0)
    /// Whether the ring may have commands that have not been read.
    var mayHaveMore = false
    /// The Stop Endpoint command that waits for the device to complete cancelled transfers.
    var pendingStop: PendingStop?
}

extension Engine {
    /// Executes commands, in order and one at a time.
    ///
    /// - Returns: whether there may be more to execute at once.
    mutating func serviceCommands(now: Duration) -> Bool {
        startCommandRing()
        finishPendingStop(now: now)
        stopCommandRing()
        var budget = XHCILimits.commandsPerPass
        while registers.command.contains(.run), commands.mayHaveMore, commands.pendingStop == nil,
            registers.commandRing.stopRequest == nil, bus.hasRoomForCommands
        {
            guard budget > 0 else { return true }
            budget -= 1
            guard let entry = nextCommand() else {
                commands.mayHaveMore = false
                break
            }
            // While the TRB was loaded, a doorbell may have been rung that precedes the command.
            handleDoorbells()
            guard registers.streamDoorbells.isEmpty else {
                commands.dequeuePointer = entry.position
                return true
            }
            execute(CommandTRB(entry.trb), at: entry.position.address, now: now)
            finishPendingStop(now: now)
        }
        return registers.commandRing.stopRequest != nil && commands.pendingStop == nil
    }

    /// Starts the ring at CRCR after doorbell 0, when the event ring has space. Each stop of the ring
    /// posts an event, so the starts bound the events that wait.
    private mutating func startCommandRing() {
        guard registers.hasCommands, bus.hasRoomForCommands else { return }
        registers.hasCommands = false
        commands.mayHaveMore = true
        guard !registers.commandRing.isRunning else { return }
        registers.commandRing.run()
        commands.dequeuePointer = registers.commandRing.start
    }

    /// Executes CS and CA of CRCR (xHCI 4.6.1.1, 4.6.1.2).
    private mutating func stopCommandRing() {
        guard let request = registers.commandRing.stopRequest else { return }
        if let stop = commands.pendingStop {
            // CS lets the command finish, CA does not.
            guard request == .abort else { return }
            finish(stop, aborted: true)
        }
        registers.commandRing.stop(at: commands.dequeuePointer)
        commands.mayHaveMore = false
        bus.post(
            .commandCompletion(
                .commandRingStopped, pointer: commands.dequeuePointer.address, slot: 0),
            to: 0)
    }

    /// Reads the next command TRB; `nil` if the driver still owns it.
    private mutating func nextCommand() -> RingEntry? {
        for _ in 0...XHCILimits.linkTRBsPerTD {
            let position = commands.dequeuePointer
            let fetched: TRB?
            do throws(DMAError) {
                fetched = try bus.fetch(at: position)
            } catch {
                bus.fail(error)
                return nil
            }
            guard let trb = fetched else { return nil }
            guard let link = LinkTRB(trb) else {
                commands.dequeuePointer = position.next
                return RingEntry(trb: trb, position: position)
            }
            commands.dequeuePointer = position.following(link)
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
}
