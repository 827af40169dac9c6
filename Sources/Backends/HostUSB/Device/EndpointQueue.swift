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
    /// Transfers that the kernel has not got yet.
    var waiting: [Transfer] = []

    /// Whether the kernel has a transfer that was cancelled.
    var hasCancelled: Bool { inFlight.contains { $0.isCancelled && $0.completion == nil } }

    /// Removes and returns the completions that no earlier transfer precedes any more.
    mutating func takeCompletions() -> [Transfer.Completion] {
        let ready = inFlight.prefix { $0.completion != nil }.compactMap(\.completion)
        inFlight.removeFirst(ready.count)
        return ready
    }
}
