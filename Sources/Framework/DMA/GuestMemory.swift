// SPDX-License-Identifier: Apache-2.0

public import Platform
internal import Synchronization
public import SystemPackage

/// The guest's memory as far as the client has shared it.
///
/// Regions with a descriptor are mapped and accessed in place. Regions without one are known, and
/// each access to them becomes a message if the client serves those (see ``remote``); this class is
/// the one place that knows the difference. All other addresses fail as on a bus without a target.
///
/// The guest runs while we look: every function reads or writes each byte once.
@safe
public final class GuestMemory {
    /// How the memory of a region without a descriptor is reached; without it such accesses fail.
    public weak var remote: (any RemoteMemory)?

    /// Sorted by address, without overlaps.
    private var regions: [MemoryRegion] = []
    /// Rings and buffers of a guest mostly lie in one region.
    private var lastFound: MemoryRegion?

    /// Memory without any region.
    public init() {}

    // MARK: - Regions

    /// The number of regions.
    public var regionCount: Int { regions.count }

    /// Adds a region that is part of a file.
    ///
    /// - Throws: `EEXIST` for an overlap, `EINVAL` for a range that is empty, wraps, or that the file
    ///   does not have, `EMFILE` beyond ``Limits/regions``.
    public func map(
        _ file: consuming Descriptor, offset: UInt64, count: UInt64, at start: GuestAddress,
        writable: Bool
    ) throws(Errno) {
        let place = try insertionPlace(start: start, count: count)
        let mapping = try Mapping(file, offset: offset, count: count, writable: writable)
        insert(
            MemoryRegion(
                start: start.rawValue, count: count, isWritable: writable, mapping: mapping),
            at: place)
    }

    /// Adds a region that has no descriptor.
    public func mapRemote(
        count: UInt64, at start: GuestAddress, writable: Bool
    ) throws(Errno) {
        let place = try insertionPlace(start: start, count: count)
        insert(
            MemoryRegion(start: start.rawValue, count: count, isWritable: writable, mapping: nil),
            at: place)
    }

    /// Removes the region of exactly this range: later accesses fail, transfers that use it go on.
    ///
    /// - Throws: `ENOENT` if there is none.
    public func unmap(_ start: GuestAddress, count: UInt64) throws(Errno) -> Unmapping {
        guard
            let place = regions.firstIndex(where: {
                $0.start == start.rawValue && $0.count == count
            })
        else { throw .noSuchFileOrDirectory }
        lastFound = nil
        return regions.remove(at: place).retire()
    }

    /// Removes every region.
    public func unmapAll() -> [Unmapping] {
        lastFound = nil
        let all = regions
        regions = []
        return all.map { $0.retire() }
    }

    /// Whether every address of a range lies in some region.
    public func covers(_ start: GuestAddress, count: UInt64) -> Bool {
        guard count > 0 else { return true }
        let end = start.rawValue.addingReportingOverflow(count - 1)
        guard !end.overflow else { return false }
        var address = start.rawValue
        while let region = region(at: address) {
            if region.last >= end.partialValue { return true }
            address = region.last + 1
        }
        return false
    }

    /// Whether a buffer of a transfer lies in mapped memory that overlaps the range.
    package static func regionOverlaps(
        _ owner: AnyObject, start: GuestAddress, count: UInt64
    ) -> Bool {
        guard let region = owner as? MemoryRegion, count > 0 else { return false }
        let last = start.rawValue.addingReportingOverflow(count - 1)
        return region.start <= (last.overflow ? .max : last.partialValue)
            && start.rawValue <= region.last
    }

    private func insertionPlace(start: GuestAddress, count: UInt64) throws(Errno) -> Int {
        guard count > 0, !start.rawValue.addingReportingOverflow(count - 1).overflow,
            Int(exactly: count) != nil
        else { throw .invalidArgument }
        guard regions.count < Limits.regions else { throw .tooManyOpenFiles }
        let place = firstRegion(endingAtOrAfter: start.rawValue)
        if place < regions.count, regions[place].start <= start.rawValue + (count - 1) {
            throw .fileExists
        }
        return place
    }

    private func insert(_ region: MemoryRegion, at place: Int) {
        regions.insert(region, at: place)
    }

    private func firstRegion(endingAtOrAfter address: UInt64) -> Int {
        var low = 0
        var high = regions.count
        while low < high {
            let middle = (low + high) / 2
            if regions[middle].last < address { low = middle + 1 } else { high = middle }
        }
        return low
    }

    private func region(at address: UInt64) -> MemoryRegion? {
        if let lastFound, lastFound.contains(address) { return lastFound }
        let place = firstRegion(endingAtOrAfter: address)
        guard place < regions.count, regions[place].contains(address) else { return nil }
        lastFound = regions[place]
        return regions[place]
    }

    // MARK: - Values

    /// The value at an address, least significant byte first.
    public func load<Value: BitwiseCopyable>(
        _ type: Value.Type = Value.self, at address: GuestAddress
    ) throws(DMAError) -> Value {
        let count = MemoryLayout<Value>.size
        if let bytes = unsafe try local(address, count: count, writing: false) {
            let value = unsafe bytes.loadUnaligned(as: Value.self)
            try checkIntact(address, count: count)
            return value
        }
        let scratch = UnsafeMutableRawBufferPointer.allocate(
            byteCount: count, alignment: MemoryLayout<Value>.alignment)
        defer { unsafe scratch.deallocate() }
        unsafe scratch.initializeMemory(as: UInt8.self, repeating: 0)
        unsafe try read(into: scratch, at: address)
        return unsafe scratch.loadUnaligned(as: Value.self)
    }

    /// Stores a value, least significant byte first.
    public func store<Value: BitwiseCopyable>(
        _ value: Value, at address: GuestAddress
    ) throws(DMAError) {
        let count = MemoryLayout<Value>.size
        if let bytes = unsafe try local(address, count: count, writing: true) {
            unsafe bytes.storeBytes(of: value, as: Value.self)
            try checkIntact(address, count: count)
            return
        }
        let scratch = UnsafeMutableRawBufferPointer.allocate(
            byteCount: count, alignment: MemoryLayout<Value>.alignment)
        defer { unsafe scratch.deallocate() }
        unsafe scratch.storeBytes(of: value, as: Value.self)
        unsafe try write(UnsafeRawBufferPointer(scratch), at: address)
    }

    /// Loads a word so that what the guest stored before it is seen by later loads.
    ///
    /// An address that is not a multiple of four fails: the rings of the controller have none.
    public func loadAcquiring(at address: GuestAddress) throws(DMAError) -> UInt32 {
        guard address.rawValue & 3 == 0 else { throw DMAError(.unmapped, at: address, count: 4) }
        guard let bytes = unsafe try local(address, count: 4, writing: false),
            let start = unsafe Self.atomicPlace(bytes)
        else { return try load(at: address) }
        let value = unsafe start.assumingMemoryBound(to: Atomic<UInt32>.self).pointee.load(
            ordering: .acquiring)
        try checkIntact(address, count: 4)
        return value
    }

    /// Stores a word so that the guest which sees it also sees all earlier stores.
    public func storeReleasing(_ value: UInt32, at address: GuestAddress) throws(DMAError) {
        guard address.rawValue & 3 == 0 else { throw DMAError(.unmapped, at: address, count: 4) }
        guard let bytes = unsafe try local(address, count: 4, writing: true),
            let start = unsafe Self.atomicPlace(bytes)
        else { return try store(value, at: address) }
        unsafe start.assumingMemoryBound(to: Atomic<UInt32>.self).pointee.store(
            value, ordering: .releasing)
        try checkIntact(address, count: 4)
    }

    /// Where an atomic word may lie. A region that begins at an odd address puts aligned addresses of
    /// the guest at odd ones of ours; no client has been seen to do that, and it loses the ordering.
    private static func atomicPlace(
        _ bytes: UnsafeMutableRawBufferPointer
    ) -> UnsafeMutableRawPointer? {
        guard let start = bytes.baseAddress, UInt(bitPattern: start) & 3 == 0 else {
            return nil
        }
        return unsafe start
    }

    // MARK: - Bytes

    /// Fills `bytes` from guest memory, across regions if need be.
    public func read(
        into bytes: UnsafeMutableRawBufferPointer, at address: GuestAddress
    ) throws(DMAError) {
        var done = 0
        try forEachPiece(at: address, count: bytes.count, writing: false) {
            (region, start, count) throws(DMAError) in
            let target = unsafe UnsafeMutableRawBufferPointer(
                rebasing: bytes[done..<done + count])
            if let source = unsafe region.bytes(from: start) {
                unsafe target.copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: source[..<count]))
                guard region.isIntact else {
                    throw DMAError(.lost, at: GuestAddress(start), count: count)
                }
            } else {
                guard let remote else {
                    throw DMAError(.unmapped, at: GuestAddress(start), count: count)
                }
                unsafe try remote.read(target, at: GuestAddress(start))
            }
            done += count
        }
    }

    /// Writes `bytes` to guest memory, across regions if need be.
    public func write(
        _ bytes: UnsafeRawBufferPointer, at address: GuestAddress
    ) throws(DMAError) {
        var done = 0
        try forEachPiece(at: address, count: bytes.count, writing: true) {
            (region, start, count) throws(DMAError) in
            let source = unsafe UnsafeRawBufferPointer(rebasing: bytes[done..<done + count])
            if let target = unsafe region.bytes(from: start) {
                unsafe UnsafeMutableRawBufferPointer(rebasing: target[..<count]).copyMemory(
                    from: source)
                guard region.isIntact else {
                    throw DMAError(.lost, at: GuestAddress(start), count: count)
                }
            } else {
                guard let remote else {
                    throw DMAError(.unmapped, at: GuestAddress(start), count: count)
                }
                unsafe try remote.write(source, at: GuestAddress(start))
            }
            done += count
        }
    }

    /// A piece of guest memory as bytes of this process.
    @safe
    public struct Slice {
        /// `nil` for memory that is only reached by messages.
        public let bytes: UnsafeMutableRawBufferPointer?
        /// Holding it keeps `bytes` mapped.
        public let owner: AnyObject
        public let address: GuestAddress
        public let count: Int
    }

    /// Calls `body` with each piece of a range in order, or throws before the first call if a part
    /// of the range is not there.
    public func forEachSlice(
        at address: GuestAddress, count: Int, writable: Bool, _ body: (Slice) -> Void
    ) throws(DMAError) {
        // The usual case first: one region holds all of it.
        if let region = region(at: address.rawValue), region.last - address.rawValue >= count - 1 {
            try check(region, at: address, count: count, writing: writable)
            body(slice(of: region, at: address.rawValue, count: count))
            return
        }
        var pieces: [Slice] = []
        try forEachPiece(at: address, count: count, writing: writable) {
            (region, start, count) throws(DMAError) in
            pieces.append(slice(of: region, at: start, count: count))
        }
        for piece in pieces { body(piece) }
    }

    private func slice(of region: MemoryRegion, at start: UInt64, count: Int) -> Slice {
        let bytes = unsafe region.bytes(from: start).map { all in
            unsafe UnsafeMutableRawBufferPointer(rebasing: all[..<count])
        }
        return unsafe Slice(
            bytes: bytes, owner: region, address: GuestAddress(start), count: count)
    }

    // MARK: - Finding regions

    /// The bytes at an address if one mapped region holds them all; `nil` sends the caller to the
    /// general path, which also finds the errors.
    private func local(
        _ address: GuestAddress, count: Int, writing: Bool
    ) throws(DMAError) -> UnsafeMutableRawBufferPointer? {
        guard let region = region(at: address.rawValue),
            region.last - address.rawValue >= UInt64(count - 1), !region.isRemote
        else { return nil }
        try check(region, at: address, count: count, writing: writing)
        return unsafe region.bytes(from: address.rawValue)
    }

    private func check(
        _ region: MemoryRegion, at address: GuestAddress, count: Int, writing: Bool
    ) throws(DMAError) {
        if writing && !region.isWritable { throw DMAError(.readOnly, at: address, count: count) }
        if !region.isIntact { throw DMAError(.lost, at: address, count: count) }
        if region.isRemote && remote == nil {
            throw DMAError(.unmapped, at: address, count: count)
        }
    }

    private func checkIntact(_ address: GuestAddress, count: Int) throws(DMAError) {
        if let lastFound, !lastFound.isIntact { throw DMAError(.lost, at: address, count: count) }
    }

    /// Cuts a range at the borders of regions. The regions are found before the first call, so a
    /// range with a hole is refused whole.
    private func forEachPiece(
        at address: GuestAddress, count: Int, writing: Bool,
        _ body: (MemoryRegion, UInt64, Int) throws(DMAError) -> Void
    ) throws(DMAError) {
        guard count > 0 else { return }
        let end = address.rawValue.addingReportingOverflow(UInt64(count - 1))
        guard !end.overflow else { throw DMAError(.unmapped, at: address, count: count) }
        var pieces: [(MemoryRegion, UInt64, Int)] = []
        var start = address.rawValue
        var left = UInt64(count)
        while left > 0 {
            guard let region = region(at: start) else {
                throw DMAError(.unmapped, at: address, count: count)
            }
            try check(region, at: GuestAddress(start), count: Int(left), writing: writing)
            let length = min(left, region.last - start + 1)
            pieces.append((region, start, Int(length)))
            left -= length
            if left > 0 { start += length }
        }
        for (region, start, count) in pieces { try body(region, start, count) }
    }
}

/// The bounds of this module.
public enum Limits {
    /// Regions at a time: what is offered to clients as `max_dma_maps`.
    public static let regions = 65535
}
