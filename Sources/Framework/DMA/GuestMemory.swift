// SPDX-License-Identifier: Apache-2.0

public import Platform
public import SystemPackage

/// The part of the guest's physical memory that the client has mapped.
///
/// A region with a file descriptor is mapped and accessed directly. A region without one is
/// accessed through ``remote``, with one message for each access. ``load(_:at:)``,
/// ``store(_:at:)``, ``read(into:at:)`` and ``write(_:at:)`` hide the difference. An access to any
/// other address fails, as on a bus without a target.
///
/// The guest runs at the same time, so every function reads or writes each byte exactly once.
@safe
public final class GuestMemory {
    /// Reads and writes the regions without a descriptor; while it is `nil`, accesses to them fail.
    public weak var remote: (any RemoteMemory)?

    /// All regions, sorted by address, without overlaps.
    private var regions: [MemoryRegion] = []
    /// A copy of the last used mapped region's fields. Most accesses need nothing else, because a
    /// guest's rings and buffers mostly lie in one region.
    private var window: Window?
    /// The region that ``window`` was copied from.
    private var windowOwner: MemoryRegion?

    @safe
    private struct Window {
        let start: UInt64
        let count: UInt64
        let isWritable: Bool
        let bytes: UnsafeMutableRawPointer
        let integrity: Mapping.Integrity
    }

    /// Creates a memory without regions.
    public init() {}

    // MARK: - Regions

    /// The number of regions.
    public var regionCount: Int { regions.count }

    /// Maps `count` bytes of a file, from `offset` on, at the guest address `start`.
    public func map(
        _ file: consuming OwnedDescriptor, offset: UInt64, count: UInt64, at start: GuestAddress,
        writable: Bool
    ) throws(MapError) {
        let index = try insertionIndex(start: start, count: count)
        let mapping: Mapping
        do throws(MappingError) {
            mapping = try Mapping(file, offset: offset, count: count, writable: writable)
        } catch {
            throw .mapping(error)
        }
        regions.insert(
            MemoryRegion(
                start: start.rawValue, count: count, isWritable: writable, mapping: mapping),
            at: index)
    }

    /// Adds a region without a descriptor, which is accessed through ``remote``.
    public func mapRemote(
        count: UInt64, at start: GuestAddress, writable: Bool
    ) throws(MapError) {
        let index = try insertionIndex(start: start, count: count)
        regions.insert(
            MemoryRegion(start: start.rawValue, count: count, isWritable: writable, mapping: nil),
            at: index)
    }

    /// Removes the region of exactly this range; later accesses fail.
    ///
    /// - Returns: the region, whose memory stays mapped in this process until it is released.
    /// - Throws: `ENOENT` if no region has exactly this range.
    public func unmap(_ start: GuestAddress, count: UInt64) throws(Errno) -> MemoryRegion {
        guard
            let index = regions.firstIndex(where: {
                $0.start == start.rawValue && $0.count == count
            })
        else { throw .noSuchFileOrDirectory }
        window = nil
        windowOwner = nil
        let region = regions.remove(at: index)
        region.markUnmapped()
        return region
    }

    /// Removes all regions; later accesses fail.
    ///
    /// - Returns: the regions, whose memory stays mapped in this process until they are released.
    public func unmapAll() -> [MemoryRegion] {
        window = nil
        windowOwner = nil
        defer { regions = [] }
        for region in regions { region.markUnmapped() }
        return regions
    }

    private func insertionIndex(start: GuestAddress, count: UInt64) throws(MapError) -> Int {
        guard count > 0, !start.rawValue.addingReportingOverflow(count - 1).overflow,
            Int(exactly: count) != nil
        else { throw .invalidRange }
        guard regions.count < DMALimits.regions else { throw .tooManyRegions }
        let index = firstRegion(endingAtOrAfter: start.rawValue)
        if index < regions.count, regions[index].start <= start.rawValue + (count - 1) {
            let region = regions[index]
            throw .overlap(first: GuestAddress(region.start), last: GuestAddress(region.last))
        }
        return index
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
        let index = firstRegion(endingAtOrAfter: address)
        guard index < regions.count, regions[index].contains(address) else { return nil }
        return regions[index]
    }

    // MARK: - Values

    /// Loads a value, least significant byte first.
    public func load<Value: BitwiseCopyable>(
        _ type: Value.Type = Value.self, at address: GuestAddress
    ) throws(DMAError) -> Value {
        let count = MemoryLayout<Value>.size
        if let mapped = mappedBytes(address, count: count, writing: false) {
            let value = unsafe mapped.bytes.loadUnaligned(as: Value.self)
            try mapped.checkIntact(address, count: count)
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
        if let mapped = mappedBytes(address, count: count, writing: true) {
            unsafe mapped.bytes.storeBytes(of: value, as: Value.self)
            try mapped.checkIntact(address, count: count)
            return
        }
        let scratch = UnsafeMutableRawBufferPointer.allocate(
            byteCount: count, alignment: MemoryLayout<Value>.alignment)
        defer { unsafe scratch.deallocate() }
        unsafe scratch.storeBytes(of: value, as: Value.self)
        unsafe try write(UnsafeRawBufferPointer(scratch), at: address)
    }

    // MARK: - Bytes

    /// Fills `bytes` from guest memory. The range may span several regions.
    public func read(
        into bytes: UnsafeMutableRawBufferPointer, at address: GuestAddress
    ) throws(DMAError) {
        var done = 0
        try forEachRegion(at: address, count: bytes.count, writing: false) {
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

    /// Writes `bytes` to guest memory. The range may span several regions.
    public func write(
        _ bytes: UnsafeRawBufferPointer, at address: GuestAddress
    ) throws(DMAError) {
        var done = 0
        try forEachRegion(at: address, count: bytes.count, writing: true) {
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

    /// The part of a range of guest memory that lies in one region.
    @safe
    public struct Slice {
        /// The memory in this process; `nil` if the region has no descriptor.
        public let bytes: UnsafeMutableRawBufferPointer?
        /// Keeps `bytes` mapped while it is referenced.
        public let owner: AnyObject
        /// The guest address of the first byte.
        public let address: GuestAddress
        /// The length in bytes.
        public let count: Int
    }

    /// Calls `body` with each slice of a range in order.
    ///
    /// - Throws: before the first call, if a part of the range is not mapped, is read-only and
    ///   `writable` is set, or has lost its pages.
    public func forEachSlice(
        at address: GuestAddress, count: Int, writable: Bool, _ body: (Slice) -> Void
    ) throws(DMAError) {
        // Fast path: the whole range lies in the last used region.
        if let mapped = mappedBytes(address, count: count, writing: writable), let windowOwner {
            try mapped.checkIntact(address, count: count)
            let bytes = unsafe UnsafeMutableRawBufferPointer(start: mapped.bytes, count: count)
            body(unsafe Slice(bytes: bytes, owner: windowOwner, address: address, count: count))
            return
        }
        try forEachRegion(at: address, count: count, writing: writable) {
            (region, start, count) throws(DMAError) in
            body(slice(of: region, at: start, count: count))
        }
    }

    private func slice(of region: MemoryRegion, at start: UInt64, count: Int) -> Slice {
        let bytes = unsafe region.bytes(from: start).map { all in
            unsafe UnsafeMutableRawBufferPointer(rebasing: all[..<count])
        }
        return unsafe Slice(
            bytes: bytes, owner: region, address: GuestAddress(start), count: count)
    }

    // MARK: - Finding regions

    /// A range of a mapped region, as memory of this process.
    @safe
    @usableFromInline
    struct MappedBytes {
        @usableFromInline let bytes: UnsafeMutableRawPointer
        @usableFromInline let integrity: Mapping.Integrity

        /// Throws if the file has lost pages. Call it after the access, which may itself be the
        /// first to touch a lost page.
        func checkIntact(_ address: GuestAddress, count: Int) throws(DMAError) {
            if !integrity.isIntact { throw DMAError(.lost, at: address, count: count) }
        }
    }

    /// The memory at an address if one mapped region contains all `count` bytes and permits the
    /// access.
    ///
    /// For `nil` the caller takes the general path, which also determines the error.
    @usableFromInline
    func mappedBytes(_ address: GuestAddress, count: Int, writing: Bool) -> MappedBytes? {
        if let mapped = windowBytes(address, count: count, writing: writing) { return mapped }
        guard let region = region(at: address.rawValue), let mapping = region.mapping,
            let bytes = unsafe mapping.bytes.baseAddress
        else { return nil }
        window = unsafe Window(
            start: region.start, count: region.count, isWritable: region.isWritable, bytes: bytes,
            integrity: mapping.integrity)
        windowOwner = region
        return windowBytes(address, count: count, writing: writing)
    }

    private func windowBytes(_ address: GuestAddress, count: Int, writing: Bool) -> MappedBytes? {
        guard let window, window.isWritable || !writing else { return nil }
        let offset = address.rawValue &- window.start
        guard offset < window.count, window.count - offset >= UInt64(count) else { return nil }
        return unsafe MappedBytes(
            bytes: window.bytes + Int(offset), integrity: window.integrity)
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

    /// Calls `body` with each region of a range, and the address and length of its part.
    ///
    /// All regions are looked up before the first call, so a range with a hole is refused as a
    /// whole. `body` may wait for the client, which may unmap a region meanwhile; the access then
    /// fails.
    private func forEachRegion(
        at address: GuestAddress, count: Int, writing: Bool,
        _ body: (MemoryRegion, UInt64, Int) throws(DMAError) -> Void
    ) throws(DMAError) {
        guard count > 0 else { return }
        let end = address.rawValue.addingReportingOverflow(UInt64(count - 1))
        guard !end.overflow else { throw DMAError(.unmapped, at: address, count: count) }
        var parts: [(MemoryRegion, UInt64, Int)] = []
        var start = address.rawValue
        var left = UInt64(count)
        while left > 0 {
            guard let region = region(at: start) else {
                throw DMAError(.unmapped, at: address, count: count)
            }
            try check(region, at: GuestAddress(start), count: Int(left), writing: writing)
            let length = min(left, region.last - start + 1)
            parts.append((region, start, Int(length)))
            left -= length
            if left > 0 { start += length }
        }
        for (region, start, count) in parts {
            guard region.isMapped else {
                throw DMAError(.unmapped, at: GuestAddress(start), count: count)
            }
            try body(region, start, count)
        }
    }
}
