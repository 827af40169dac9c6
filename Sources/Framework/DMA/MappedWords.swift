// SPDX-License-Identifier: Apache-2.0

public import Platform
public import Synchronization

/// Guest memory in one mapped region, looked up once and then accessed in a defined order.
///
/// It is valid until the region is unmapped: use it at once and do not store it. Its accesses are
/// inlined, because every ring entry is read and written with them.
@safe
public struct MappedWords {
    @usableFromInline let start: UnsafeMutableRawPointer
    @usableFromInline let count: Int
    @usableFromInline let address: GuestAddress
    @usableFromInline let integrity: Mapping.Integrity

    @usableFromInline
    init(
        start: UnsafeMutableRawPointer, count: Int, address: GuestAddress,
        integrity: Mapping.Integrity
    ) {
        unsafe self.start = start
        self.count = count
        self.address = address
        self.integrity = integrity
    }

    /// Loads a value, least significant byte first; no order with other accesses.
    @inlinable
    public func load<Value: BitwiseCopyable>(
        _ type: Value.Type = Value.self, at offset: Int
    ) -> Value {
        checkBounds(offset, MemoryLayout<Value>.size)
        return unsafe start.loadUnaligned(fromByteOffset: offset, as: Value.self)
    }

    /// Stores a value, least significant byte first; no order with other accesses.
    @inlinable
    public func store<Value: BitwiseCopyable>(_ value: Value, at offset: Int) {
        checkBounds(offset, MemoryLayout<Value>.size)
        unsafe start.storeBytes(of: value, toByteOffset: offset, as: Value.self)
    }

    /// Loads the word at an offset that is a multiple of four. Later loads see what the guest
    /// stored before it stored this word.
    @inlinable
    public func loadAcquiring(at offset: Int) -> UInt32 {
        unsafe word(at: offset).pointee.load(ordering: .acquiring)
    }

    /// Stores the word at an offset that is a multiple of four. A guest that sees it also sees all
    /// earlier stores.
    @inlinable
    public func storeReleasing(_ value: UInt32, at offset: Int) {
        unsafe word(at: offset).pointee.store(value, ordering: .releasing)
    }

    /// Throws if the file behind the memory has lost pages. Call it after the accesses, which may
    /// be the first to reach a lost page.
    @inlinable
    public func checkIntact() throws(DMAError) {
        if !integrity.isIntact { throw DMAError(.lost, at: address, count: count) }
    }

    @inlinable
    func word(at offset: Int) -> UnsafePointer<Atomic<UInt32>> {
        checkBounds(offset, 4)
        precondition(offset & 3 == 0, "offset \(offset) is not that of a word")
        return unsafe UnsafePointer(
            (start + offset).assumingMemoryBound(to: Atomic<UInt32>.self))
    }

    @inlinable
    func checkBounds(_ offset: Int, _ size: Int) {
        precondition(
            offset >= 0 && offset <= count - size, "\(size) bytes at \(offset) of \(count)")
    }
}

extension GuestMemory {
    /// Guest memory as words of this process, if one mapped region holds all `count` bytes.
    ///
    /// A region that begins at an odd address puts the guest's words at odd addresses here. No
    /// client is known to map memory so; it loses the ordering.
    ///
    /// - Returns: `nil` if the bytes must be accessed with `load` and `store`, which also find the
    ///   errors.
    public func mappedWords(
        at address: GuestAddress, count: Int, writing: Bool
    ) -> MappedWords? {
        guard let mapped = mappedBytes(address, count: count, writing: writing),
            UInt(bitPattern: unsafe mapped.bytes) & 3 == 0
        else { return nil }
        return unsafe MappedWords(
            start: mapped.bytes, count: count, address: address, integrity: mapped.integrity)
    }
}
