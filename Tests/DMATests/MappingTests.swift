// SPDX-License-Identifier: Apache-2.0

import DMA
import Platform
import SystemPackage
import Testing

@Suite("regions of guest memory")
struct MappingTests {
    let memory = GuestMemory()
    let file: MemoryFile

    init() throws { file = try MemoryFile(size: 0x10000) }

    private func map(
        _ address: UInt64, _ count: UInt64, offset: UInt64 = 0, writable: Bool = true
    ) throws {
        try memory.map(
            file.descriptor(), offset: offset, count: count, at: GuestAddress(address),
            writable: writable)
    }

    @Test("regions may touch but not overlap")
    func overlap() throws {
        try map(0x2000, 0x2000)
        for (address, count): (UInt64, UInt64) in [
            (0x2000, 0x2000), (0x1000, 0x1001), (0x3fff, 1), (0x1000, 0x8000), (0x2800, 0x100),
        ] {
            let overlap = MapError.overlap(
                first: GuestAddress(0x2000), last: GuestAddress(0x3fff))
            #expect(throws: overlap) { try map(address, count) }
            #expect(throws: overlap) {
                try memory.mapRemote(count: count, at: GuestAddress(address), writable: true)
            }
        }
        try map(0x1000, 0x1000)
        try map(0x4000, 0x1000)
        #expect(memory.regionCount == 3)
    }

    @Test("an empty range and one that wraps around are refused")
    func impossible() throws {
        #expect(throws: MapError.invalidRange) { try map(0x1000, 0) }
        #expect(throws: MapError.invalidRange) { try map(.max, 2) }
        #expect(throws: MapError.invalidRange) { try map(0, .max) }
        #expect(throws: MapError.invalidRange) {
            try memory.mapRemote(count: .max, at: GuestAddress(0), writable: true)
        }
        #expect(throws: MapError.invalidRange) {
            try memory.mapRemote(count: 0, at: GuestAddress(0), writable: true)
        }
        #expect(memory.regionCount == 0)
    }

    @Test("a range that ends one byte past the end of the file is refused")
    func beyondFile() throws {
        let pastEnd = MapError.mapping(.pastEndOfFile(fileSize: 0x10000))
        #expect(throws: pastEnd) { try map(0, 0x10001) }
        #expect(throws: pastEnd) { try map(0, 0x1000, offset: 0x10000) }
        #expect(throws: MapError.mapping(.invalidRange)) { try map(0, 0x1000, offset: .max) }
        #expect(throws: MapError.mapping(.invalidRange)) { try map(0, 0x1000, offset: 1 << 63) }
        try map(0, 0x10000)
    }

    @Test("the last byte of the address space can be mapped")
    func topOfAddressSpace() throws {
        try map(0xffff_ffff_ffff_f000, 0x1000)
        #expect(try memory.bytes(1, at: .max) == [UInt8(0xfff % 251)])
        #expect(throws: DMAError(.unmapped, at: GuestAddress(.max), count: 2)) {
            try memory.bytes(2, at: .max)
        }
        // The range does not wrap around to memory at zero.
        try map(0, 0x1000)
        #expect(throws: DMAError.self) { try memory.bytes(2, at: .max) }
        #expect(throws: DMAError.self) { try memory.load(UInt64.self, at: GuestAddress(.max - 3)) }
        #expect(throws: DMAError.self) {
            try memory.forEachSlice(at: GuestAddress(.max), count: 2, writable: false) { _ in }
        }
    }

    @Test("only an exactly mapped range is unmapped")
    func exactUnmap() throws {
        try map(0x2000, 0x2000)
        for (address, count): (UInt64, UInt64) in [
            (0x2000, 0x1000), (0x3000, 0x1000), (0x2000, 0x3000), (0, 0), (0x9000, 0x1000),
        ] {
            #expect(throws: Errno.noSuchFileOrDirectory) {
                try memory.unmap(GuestAddress(address), count: count)
            }
        }
        _ = try memory.unmap(GuestAddress(0x2000), count: 0x2000)
        #expect(throws: Errno.noSuchFileOrDirectory) {
            try memory.unmap(GuestAddress(0x2000), count: 0x2000)
        }
    }

    @Test("an unmapped region cannot be accessed, although it was the last one used")
    func accessAfterUnmap() throws {
        try map(0x2000, 0x1000)
        _ = try memory.load(UInt32.self, at: GuestAddress(0x2000))
        _ = try memory.unmap(GuestAddress(0x2000), count: 0x1000)
        #expect(throws: DMAError(.unmapped, at: GuestAddress(0x2000), count: 4)) {
            try memory.load(UInt32.self, at: GuestAddress(0x2000))
        }
    }

    @Test("a region stays mapped in this process until it is released")
    func release() throws {
        try map(0x2000, 0x1000)
        var owner: AnyObject?
        var bytes: UnsafeMutableRawBufferPointer?
        try memory.forEachSlice(at: GuestAddress(0x2100), count: 16, writable: true) {
            owner = $0.owner
            bytes = $0.bytes
        }
        var region: MemoryRegion? = try memory.unmap(GuestAddress(0x2000), count: 0x1000)
        #expect(region === owner)
        #expect(bytes?[0] == UInt8(0x100 % 251))
        weak let remaining = region
        region = nil
        owner = nil
        #expect(remaining == nil)
    }

    @Test("the address of an unmapped region can be mapped again while the region is retained")
    func remap() throws {
        try map(0x2000, 0x1000)
        let region = try memory.unmap(GuestAddress(0x2000), count: 0x1000)
        try map(0x2000, 0x1000, offset: 0x1000)
        #expect(try memory.bytes(1, at: 0x2000) == [UInt8(0x1000 % 251)])
        withExtendedLifetime(region) {}
    }

    @Test("all regions are unmapped together")
    func unmapAll() throws {
        try map(0x2000, 0x1000)
        try map(0x8000, 0x1000)
        try memory.mapRemote(count: 0x1000, at: GuestAddress(0), writable: true)
        #expect(memory.unmapAll().count == 3)
        #expect(memory.regionCount == 0)
        #expect(memory.unmapAll().isEmpty)
    }

    @Test("65535 regions can be mapped, one more is refused")
    func manyRegions() throws {
        for index in 0..<UInt64(DMALimits.regions) {
            try memory.mapRemote(count: 1, at: GuestAddress(index * 2), writable: true)
        }
        #expect(throws: MapError.tooManyRegions) {
            try memory.mapRemote(count: 1, at: GuestAddress(1), writable: true)
        }
        _ = try memory.unmap(GuestAddress(4), count: 1)
        try memory.mapRemote(count: 1, at: GuestAddress(1), writable: true)
    }
}
