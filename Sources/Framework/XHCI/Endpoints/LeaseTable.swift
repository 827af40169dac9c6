// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// The leases of all transfers: the single record of the guest memory that devices may access.
///
/// A lease is granted when a transfer is submitted and ends when its TD is retired. Stop Endpoint
/// and a halt of the controller first ask the device to cancel, because they need the number of
/// bytes moved, and revoke the lease at a timeout. All else that ends a transfer revokes its lease
/// at once: a dropped endpoint, a reset, an unplugged device, a client that disconnects.
///
/// When a client unmaps memory, leases on it move to staging memory. The device continues, and IN
/// data is copied to guest memory when the transfer completes, if it is mapped by then.
///
/// The table is an object beside the engine, because a client may unmap memory while a service pass
/// waits for guest memory.
final class LeaseTable {
    let budget = StagingBudget()
    /// All leases ever made: as many as the most transfers that were in flight at one time.
    private var all: [MemoryLease] = []
    /// The leases that no endpoint has.
    private var unused: [MemoryLease] = []

    /// A lease for the transfers of an endpoint.
    func unusedLease() -> MemoryLease {
        if let lease = unused.popLast() { return lease }
        let lease = MemoryLease()
        all.append(lease)
        return lease
    }

    /// Keeps the leases of a dropped endpoint for reuse.
    func recycle(_ leases: [MemoryLease]) { unused += leases }

    /// Ends all leases.
    func endAll() {
        for lease in all { lease.end() }
    }

    /// Moves all leases that refer to a region to staging memory. A lease that exceeds the budget
    /// is ended.
    func stage(_ region: MemoryRegion) {
        for lease in all where lease.refers(to: region) {
            let buffer = lease.buffer
            if let memory = StagingMemory(count: buffer.count, of: budget) {
                unsafe lease.stage(in: memory.bytes, keeping: memory)
            } else {
                lease.end()
            }
        }
    }
}
