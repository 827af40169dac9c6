// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import USB

/// A transfer that the device has not completed.
struct PendingTransfer {
    let transfer: Transfer
    /// Bytes that have moved so far.
    var moved = 0
    /// Whether the fault rules have been evaluated for the transfer.
    var isEvaluated = false
    /// The fault that a rule has chosen for the transfer.
    var fault: FaultRule.Action?
    /// The condition until which the endpoint answers NAK.
    var nak: NAK?

    /// The end of a NAK fault.
    enum NAK {
        case forever
        /// A deadline on the event loop's clock.
        case until(Duration)
        /// Until this number of further transfers waits.
        case queued(Int)
    }
}

/// The transfers that wait at one endpoint, in the order of their submission.
final class PipeQueue {
    var transfers: [PendingTransfer] = []
    /// Fires when the first transfer's NAK or the pause ends.
    var timer: Watch?
    /// Whether the queue waits for the host to cancel the transfers behind a failed one.
    var isPaused = false

    /// Whether the next transfer can be processed as soon as it is submitted.
    var isIdle: Bool { transfers.isEmpty && !isPaused }

    func remove(_ id: Transfer.ID) -> (transfer: PendingTransfer, wasFirst: Bool)? {
        guard let index = transfers.firstIndex(where: { $0.transfer.id == id }) else { return nil }
        return (transfers.remove(at: index), index == 0)
    }

    /// Removes and returns all transfers, and ends a pause.
    @discardableResult
    func removeAll() -> [PendingTransfer] {
        defer {
            transfers = []
            timer = nil
            isPaused = false
        }
        return transfers
    }

    /// Ends all NAK faults. The timer of a pause stays.
    func endNAKs() {
        for index in transfers.indices { transfers[index].nak = nil }
        cancelNAKTimer()
    }

    /// Cancels the timer, unless it is that of a pause.
    func cancelNAKTimer() {
        if !isPaused { timer = nil }
    }
}
