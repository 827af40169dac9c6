// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// The 16 bytes that rings in memory are made of. The last word has the bit that tells whose they are:
/// the producer's or the consumer's.
public struct RingItem: BitwiseCopyable, Equatable, Sendable {
    public var parameter: UInt64
    public var status: UInt32
    public var control: UInt32

    public init(parameter: UInt64 = 0, status: UInt32 = 0, control: UInt32 = 0) {
        self.parameter = parameter
        self.status = status
        self.control = control
    }
}

extension GuestMemory {
    /// Loads an item if bit 0 of its last word is `cycle`. That word is loaded first: when the guest
    /// has stored it, the others are what belongs to it.
    ///
    /// An address that is not a multiple of four fails: the rings of the controller have none.
    public func loadRingItem(
        at address: GuestAddress, cycle: Bool
    ) throws(DMAError) -> RingItem? {
        try requireWords(address)
        guard let mapped = mappedBytes(address, count: 16, writing: false),
            let word = unsafe mapped.atomicWord(at: 12)
        else {
            let control: UInt32 = try load(at: address + 12)
            guard (control & 1 == 1) == cycle else { return nil }
            return RingItem(
                parameter: try load(at: address), status: try load(at: address + 8),
                control: control)
        }
        let control = unsafe word.pointee.load(ordering: .acquiring)
        let parameter = unsafe mapped.bytes.loadUnaligned(as: UInt64.self)
        let status = unsafe mapped.bytes.loadUnaligned(fromByteOffset: 8, as: UInt32.self)
        try mapped.checkIntact(address, count: 16)
        guard (control & 1 == 1) == cycle else { return nil }
        return RingItem(parameter: parameter, status: status, control: control)
    }

    /// Stores an item, its last word so that the guest which sees it also sees the others and all
    /// earlier stores.
    public func store(_ item: RingItem, at address: GuestAddress) throws(DMAError) {
        try requireWords(address)
        guard let mapped = mappedBytes(address, count: 16, writing: true),
            let word = unsafe mapped.atomicWord(at: 12)
        else {
            try store(item.parameter, at: address)
            try store(item.status, at: address + 8)
            try store(item.control, at: address + 12)
            return
        }
        unsafe mapped.bytes.storeBytes(of: item.parameter, as: UInt64.self)
        unsafe mapped.bytes.storeBytes(of: item.status, toByteOffset: 8, as: UInt32.self)
        unsafe word.pointee.store(item.control, ordering: .releasing)
        try mapped.checkIntact(address, count: 16)
    }

    private func requireWords(_ address: GuestAddress) throws(DMAError) {
        guard address.rawValue & 3 == 0 else { throw DMAError(.unmapped, at: address, count: 16) }
    }
}

extension GuestMemory.MappedBytes {
    /// A word for atomic access. A region that begins at an odd address puts aligned addresses of the
    /// guest at odd ones of ours; no client has been seen to do that, and it loses the ordering.
    fileprivate func atomicWord(at offset: Int) -> UnsafePointer<Atomic<UInt32>>? {
        let start = unsafe bytes + offset
        guard UInt(bitPattern: start) & 3 == 0 else { return nil }
        return unsafe UnsafePointer(start.assumingMemoryBound(to: Atomic<UInt32>.self))
    }
}
