// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// The leases on guest memory of all transfers that devices have: the one answer to the question whether
/// a device may still access memory that the guest uses for something else.
///
/// A lease is granted when a transfer is submitted and ends when it is retired. Stop Endpoint and a
/// halt of the controller first ask the device to cancel, because the number of bytes moved matters;
/// a device that does not answer in time, and every other way in which a transfer ends (a dropped
/// endpoint, a reset, an unplug, a client that disconnects), revokes the lease at once. When a client
/// unmaps memory, leases on it move to staging memory: the device goes on, and its data is copied to
/// the guest's memory when the transfer completes, if that is mapped by then.
///
/// This is an object beside the engine, since a client may unmap memory in the midst of a service
/// pass that waits for it.
final class MemoryLeases {
    let budget = StagingBudget()
    private var granted: [MemoryLease] = []
    /// Leases that have ended, for the next transfers.
    private var unused: [MemoryLease] = []

    /// The number of leases granted.
    var count: Int { granted.count }

    /// Grants a lease on no bytes, to which the transfer's memory is added.
    func grant() -> MemoryLease {
        let lease = unused.popLast() ?? MemoryLease()
        lease.index = granted.count
        granted.append(lease)
        return lease
    }

    /// Ends the lease of a transfer that has completed.
    func end(_ ended: consuming MemoryLease) {
        var lease = ended
        remove(lease)
        // A device that keeps a buffer must not find the next transfer's memory in it.
        if isKnownUniquelyReferenced(&lease), unused.count < XHCILimits.unusedLeases {
            lease.reuse()
            unused.append(lease)
        } else {
            lease.revoke()
        }
    }

    /// Revokes the lease of a transfer that its device still has.
    func revoke(_ lease: MemoryLease) {
        remove(lease)
        lease.revoke()
    }

    /// Revokes all leases.
    func revokeAll() {
        for lease in granted { lease.revoke() }
        granted = []
    }

    /// Moves all leases that refer to a region to staging memory; those for which there is none are
    /// revoked.
    func stage(_ region: MemoryRegion) {
        for lease in granted where lease.refers(to: region) {
            if let memory = StagingMemory(count: lease.count, of: budget) {
                unsafe lease.stage(in: memory.bytes, keeping: memory)
            } else {
                lease.revoke()
            }
        }
    }

    /// Takes a lease off the list; one that is not on it any more is left alone.
    private func remove(_ lease: MemoryLease) {
        let index = lease.index
        guard index < granted.count, granted[index] === lease else { return }
        let last = granted.removeLast()
        guard last !== lease else { return }
        granted[index] = last
        last.index = index
    }
}
