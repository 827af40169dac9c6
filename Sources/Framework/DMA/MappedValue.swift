// SPDX-License-Identifier: Apache-2.0

public import Platform
public import Synchronization

/// A value of a known layout in one mapped region, looked up once and then accessed part by part in
/// a defined order.
///
/// It is valid until the region is unmapped: use it at once and do not store it. Its accesses are
/// inlined, because every ring entry is read and written with them; offsets that are constants cost
/// no bounds check.
@safe
public struct MappedValue<Value: BitwiseCopyable> {
    @usableFromInline let mapped: GuestMemory.MappedBytes
    @usableFromInline let address: GuestAddress

    @inlinable
    init(_ mapped: GuestMemory.MappedBytes, at address: GuestAddress) {
        self.mapped = mapped
        self.address = address
    }

    /// Loads a part, least significant byte first; no order with other accesses.
    @inlinable
    public func load<Part: BitwiseCopyable>(
        _ type: Part.Type = Part.self, at offset: Int
    ) -> Part {
        Self.checkBounds(offset, MemoryLayout<Part>.size)
        return unsafe mapped.bytes.loadUnaligned(fromByteOffset: offset, as: Part.self)
    }

    /// Stores a part, least significant byte first; no order with other accesses.
    @inlinable
    public func store<Part: BitwiseCopyable>(_ part: Part, at offset: Int) {
        Self.checkBounds(offset, MemoryLayout<Part>.size)
        unsafe mapped.bytes.storeBytes(of: part, toByteOffset: offset, as: Part.self)
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
    public func storeReleasing(_ word: UInt32, at offset: Int) {
        unsafe self.word(at: offset).pointee.store(word, ordering: .releasing)
    }

    /// Throws if the file behind the memory has lost pages. Call it after the accesses, which may
    /// be the first to reach a lost page.
    @inlinable
    public func checkIntact() throws(DMAError) {
        if !mapped.integrity.isIntact {
            throw DMAError(.lost, at: address, count: MemoryLayout<Value>.size)
        }
    }

    @inlinable
    func word(at offset: Int) -> UnsafePointer<Atomic<UInt32>> {
        Self.checkBounds(offset, 4)
        precondition(offset & 3 == 0, "offset \(offset) is not a multiple of 4")
        return unsafe UnsafePointer(
            (mapped.bytes + offset).assumingMemoryBound(to: Atomic<UInt32>.self))
    }

    @inlinable
    static func checkBounds(_ offset: Int, _ size: Int) {
        precondition(
            offset >= 0 && offset <= MemoryLayout<Value>.size - size,
            "\(size) bytes at \(offset) of \(MemoryLayout<Value>.size)")
    }
}

extension GuestMemory {
    /// A value in guest memory, if one mapped region holds all its bytes.
    ///
    /// The guest's words are aligned in this process only if their region is. No client is known to
    /// map an unaligned region; accesses to one have no ordering.
    ///
    /// - Returns: `nil` if the bytes must be accessed with `load` and `store`, which also find the
    ///   errors.
    @inlinable
    public func mappedValue<Value: BitwiseCopyable>(
        _ type: Value.Type, at address: GuestAddress, writing: Bool
    ) -> MappedValue<Value>? {
        guard
            let mapped = mappedBytes(address, count: MemoryLayout<Value>.size, writing: writing),
            UInt(bitPattern: unsafe mapped.bytes) & 3 == 0
        else { return nil }
        return MappedValue(mapped, at: address)
    }
}
