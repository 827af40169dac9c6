// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// The leases on guest memory of all transfers that devices have: the one answer to the question whether
/// a device may still access memory that the guest uses for something else.
///
/// A lease is granted when a transfer is submitted and ends when it is retired. Stop Endpoint and a
/// halt of the controller first ask the device to cancel, because the number of bytes moved matters;
/// a device that does not answer in time, and every other way in which a transfer ends (a dropped
/// endpoint, a reset, an unplug, a client that disconnects), loses the lease at once. When a client
/// unmaps memory, leases on it move to staging memory: the device goes on, and its data is copied to
/// the guest's memory when the transfer completes, if that is mapped by then.
///
/// This is an object beside the engine, since a client may unmap memory in the midst of a service
/// pass that waits for it.
final class LeaseTable {
    let budget = StagingBudget()
    /// All leases: as many as transfers were in flight at a time.
    private var all: [MemoryLease] = []
    /// Those that no endpoint has.
    private var unused: [MemoryLease] = []

    /// A lease for the transfers of an endpoint.
    func take() -> MemoryLease {
        if let lease = unused.popLast() { return lease }
        let lease = MemoryLease()
        all.append(lease)
        return lease
    }

    /// Takes back the leases of an endpoint that is dropped.
    func putBack(_ leases: [MemoryLease]) { unused += leases }

    /// Ends all leases.
    func endAll() {
        for lease in all { lease.end() }
    }

    /// Moves all leases that refer to a region to staging memory. Those for which there is none end.
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
