// SPDX-License-Identifier: Apache-2.0

internal import USB

/// One endpoint's transfers of a ``HostDevice``, oldest first.
struct EndpointQueue {
    /// A transfer that the kernel has, or one whose completion waits for earlier transfers to end.
    struct InFlight {
        let id: Transfer.ID
        var isCancelled = false
        var completion: Transfer.Completion?
    }

    var inFlight: [InFlight] = []
    /// Transfers that have not been submitted to the kernel.
    var waiting: [Transfer] = []

    /// Whether the kernel has a transfer that was cancelled.
    var hasCancelled: Bool { inFlight.contains { $0.isCancelled && $0.completion == nil } }

    /// Removes the completions at the head of the queue and returns them.
    mutating func takeCompletions() -> [Transfer.Completion] {
        let ready = inFlight.prefix { $0.completion != nil }.compactMap(\.completion)
        inFlight.removeFirst(ready.count)
        return ready
    }
}
