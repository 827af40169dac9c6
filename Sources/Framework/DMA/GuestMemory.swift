// SPDX-License-Identifier: Apache-2.0

public import Platform
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
    /// The mapped region that was used last, as plain numbers: most accesses need no more, since rings
    /// and buffers of a guest mostly lie in one region.
    private var window: Window?
    /// The same region.
    private var windowOwner: MemoryRegion?

    @safe
    private struct Window {
        let start: UInt64
        let count: UInt64
        let isWritable: Bool
        let bytes: UnsafeMutableRawPointer
        let integrity: Mapping.Integrity
    }

    /// Memory without any region.
    public init() {}

    // MARK: - Regions

    /// The number of regions.
    public var regionCount: Int { regions.count }

    /// Adds a region that is part of a file.
    ///
    /// - Throws: `EEXIST` for an overlap, `EINVAL` for a range that is empty, wraps, or that the file
    ///   does not have, `EMFILE` beyond ``DMALimits/regions``.
    public func map(
        _ file: consuming OwnedDescriptor, offset: UInt64, count: UInt64, at start: GuestAddress,
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
        window = nil
        windowOwner = nil
        return regions.remove(at: place).retire()
    }

    /// Removes every region.
    public func unmapAll() -> [Unmapping] {
        window = nil
        windowOwner = nil
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
        guard regions.count < DMALimits.regions else { throw .tooManyOpenFiles }
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
        let place = firstRegion(endingAtOrAfter: address)
        guard place < regions.count, regions[place].contains(address) else { return nil }
        return regions[place]
    }

    // MARK: - Values

    /// The value at an address, least significant byte first.
    public func load<Value: BitwiseCopyable>(
        _ type: Value.Type = Value.self, at address: GuestAddress
    ) throws(DMAError) -> Value {
        let count = MemoryLayout<Value>.size
        if let place = local(address, count: count, writing: false) {
            let value = unsafe place.bytes.loadUnaligned(as: Value.self)
            try place.checkIntact(address, count: count)
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
        if let place = local(address, count: count, writing: true) {
            unsafe place.bytes.storeBytes(of: value, as: Value.self)
            try place.checkIntact(address, count: count)
            return
        }
        let scratch = UnsafeMutableRawBufferPointer.allocate(
            byteCount: count, alignment: MemoryLayout<Value>.alignment)
        defer { unsafe scratch.deallocate() }
        unsafe scratch.storeBytes(of: value, as: Value.self)
        unsafe try write(UnsafeRawBufferPointer(scratch), at: address)
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
        // The usual case first: the last region holds all of it.
        if let place = local(address, count: count, writing: writable), let windowOwner {
            try place.checkIntact(address, count: count)
            let bytes = unsafe UnsafeMutableRawBufferPointer(start: place.bytes, count: count)
            body(unsafe Slice(bytes: bytes, owner: windowOwner, address: address, count: count))
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

    /// Bytes of a mapped region.
    @safe
    struct Place {
        let bytes: UnsafeMutableRawPointer
        let integrity: Mapping.Integrity

        /// Asked after the access, which may have been what met a lost page.
        func checkIntact(_ address: GuestAddress, count: Int) throws(DMAError) {
            if !integrity.isIntact { throw DMAError(.lost, at: address, count: count) }
        }
    }

    /// Where an address is if one mapped region holds all bytes; `nil` sends the caller to the general
    /// path, which also finds the errors.
    func local(_ address: GuestAddress, count: Int, writing: Bool) -> Place? {
        if let place = place(address, count: count, writing: writing) { return place }
        // Perhaps it is in another region than the last one.
        guard let region = region(at: address.rawValue), let mapping = region.mapping,
            let bytes = unsafe mapping.bytes.baseAddress
        else { return nil }
        window = unsafe Window(
            start: region.start, count: region.count, isWritable: region.isWritable, bytes: bytes,
            integrity: mapping.integrity)
        windowOwner = region
        return place(address, count: count, writing: writing)
    }

    private func place(_ address: GuestAddress, count: Int, writing: Bool) -> Place? {
        guard let window, window.isWritable || !writing else { return nil }
        let offset = address.rawValue &- window.start
        guard offset < window.count, window.count - offset >= UInt64(count) else { return nil }
        return unsafe Place(
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
public enum DMALimits {
    /// Regions at a time: what is offered to clients as `max_dma_maps`.
    public static let regions = 65535
}
