// SPDX-License-Identifier: Apache-2.0

/// Stop Endpoint (xHCI 4.6.9): the only command that waits for a device.
extension CommandRing {
    /// A Stop Endpoint command that waits until the device has completed the cancelled transfers.
    struct PendingStop {
        let pointer: UInt64
        let slot: Int
        let endpoint: Int
        /// The time at which the command ends even if the device has not completed its transfers.
        let deadline: Duration
    }
}

extension Engine {
    /// Starts Stop Endpoint (xHCI 4.6.9), which ends when the device has completed the transfers
    /// that it cancels, or after ``XHCILimits/cancelTimeout``.
    mutating func stopEndpoint(_ command: CommandTRB, at pointer: UInt64, now: Duration) {
        let slot = command.slot
        let endpoint = command.endpoint
        let owner = slots[slot].identity
        slots[slot].endpoints[endpoint]?.beginStop(owner)
        commands.pendingStop = CommandRing.PendingStop(
            pointer: pointer, slot: slot, endpoint: endpoint,
            deadline: now + XHCILimits.cancelTimeout)
    }

    /// Ends a pending Stop Endpoint at once, because the controller halts.
    mutating func endPendingStop() {
        if let stop = commands.pendingStop { finish(stop, aborted: false) }
    }

    mutating func finishPendingStop(now: Duration) {
        guard let stop = commands.pendingStop else { return }
        handleDeviceMessages()
        let isDrained = slots[stop.slot].endpoints[stop.endpoint]?.isDrained ?? true
        guard isDrained || stop.deadline <= now else { return }
        finish(stop, aborted: false)
    }

    mutating func finish(_ stop: CommandRing.PendingStop, aborted: Bool) {
        commands.pendingStop = nil
        let owner = slots[stop.slot].identity
        let isStopped =
            slots[stop.slot].endpoints[stop.endpoint]?.finishStop(owner, &bus) ?? true
        let code: CompletionCode =
            !isStopped ? .contextStateError : aborted ? .commandAborted : .success
        complete(code, at: stop.pointer, slot: stop.slot)
    }
}
