// SPDX-License-Identifier: Apache-2.0

import DMA
import Platform
import SystemPackage
import Testing

@Suite("accesses to guest memory")
struct AccessTests {
    let memory = GuestMemory()
    let file: MemoryFile

    /// Memory at 0x1000: a writable, a read-only and a remote region of 0x1000 bytes each.
    let remote = FakeRemote(base: 0x3000, size: 0x1000)

    init() throws {
        file = try MemoryFile(size: 0x2000)
        try memory.map(
            file.descriptor(), offset: 0, count: 0x1000, at: GuestAddress(0x1000), writable: true)
        try memory.map(
            file.descriptor(), offset: 0x1000, count: 0x1000, at: GuestAddress(0x2000),
            writable: false)
        try memory.mapRemote(count: 0x1000, at: GuestAddress(0x3000), writable: true)
        memory.remote = remote
    }

    @Test("values are read and written least significant byte first")
    func values() throws {
        try memory.store(0x0102_0304_0506_0708 as UInt64, at: GuestAddress(0x1010))
        #expect(try file.read(8, at: 0x10) == [8, 7, 6, 5, 4, 3, 2, 1])
        #expect(try memory.load(UInt16.self, at: GuestAddress(0x1013)) == 0x0405)
    }

    /// Sixteen bytes in three fields.
    private struct Record: BitwiseCopyable {
        var first: UInt64
        var second: UInt32
        var third: UInt32
    }

    @Test(
        "the fields of a value in one mapped region are accessed with and without ordering")
    func mappedValue() throws {
        let record = try #require(
            memory.mappedValue(Record.self, at: GuestAddress(0x1020), writing: true))
        record.store(0x0102_0304_0506_0708 as UInt64, at: 0)
        record.store(0x090a_0b0c as UInt32, at: 8)
        record.storeReleasing(0x0403_0201, at: 12)
        try record.checkIntact()
        #expect(
            try file.read(16, at: 0x20) == [8, 7, 6, 5, 4, 3, 2, 1, 12, 11, 10, 9, 1, 2, 3, 4])
        try file.write([5, 6, 7, 8], at: 0x2c)
        #expect(record.loadAcquiring(at: 12) == 0x0807_0605)
        #expect(record.load(UInt64.self, at: 0) == 0x0102_0304_0506_0708)
        #expect(record.load(UInt32.self, at: 8) == 0x090a_0b0c)
    }

    @Test("a value that spans regions, or is not aligned in this process, has no direct access")
    func noMappedValue() throws {
        func isMapped(_ address: UInt64, writing: Bool = false) -> Bool {
            memory.mappedValue(Record.self, at: GuestAddress(address), writing: writing) != nil
        }
        #expect(isMapped(0x1000, writing: true) && isMapped(0x2ff0))
        #expect(!isMapped(0x2000, writing: true))  // read-only
        #expect(!isMapped(0x1ff8))  // across two regions
        #expect(!isMapped(0x2ff8))  // the second half is reached by messages
        #expect(!isMapped(0x3000) && !isMapped(0x4000))
        #expect(!isMapped(0x1001) && !isMapped(0x1002) && !isMapped(0x1003))
        try memory.map(
            file.descriptor(), offset: 0, count: 0x1000, at: GuestAddress(0x8001), writable: true)
        #expect(!isMapped(0x8010) && isMapped(0x8011))
    }

    @Test("a value may span regions")
    func acrossRegions() throws {
        #expect(
            try memory.load(UInt32.self, at: GuestAddress(0x1ffe))
                == UInt32(0xffe % 251) | UInt32(0xfff % 251) << 8 | UInt32(0x1000 % 251) << 16
                | UInt32(0x1001 % 251) << 24)
        let all = try memory.bytes(0x3000, at: 0x1000)
        #expect(all == (try file.read(0x2000, at: 0)) + remote.contents)
        #expect(remote.accesses == [.init(address: 0x3000, count: 0x1000, isWrite: false)])
    }

    @Test("read-only memory cannot be written, nor can a range that ends in it")
    func readOnly() throws {
        _ = try memory.load(UInt8.self, at: GuestAddress(0x2000))
        #expect(throws: DMAError(.readOnly, at: GuestAddress(0x2000), count: 1)) {
            try memory.store(1 as UInt8, at: GuestAddress(0x2000))
        }
        let before = try file.read(2, at: 0xffe)
        #expect(throws: DMAError.self) { try memory.write([9, 9, 9, 9], at: 0x1ffe) }
        #expect(try file.read(2, at: 0xffe) == before)
        #expect(throws: DMAError.self) {
            try memory.forEachSlice(at: GuestAddress(0x2000), count: 1, writable: true) { _ in
                Issue.record("a slice of read-only memory to be written")
            }
        }
    }

    @Test("a range with a hole is refused as a whole")
    func hole() throws {
        #expect(throws: DMAError(.unmapped, at: GuestAddress(0x3ffe), count: 4)) {
            try memory.write([1, 2, 3, 4], at: 0x3ffe)
        }
        #expect(remote.accesses.isEmpty)
        #expect(throws: DMAError.self) { try memory.bytes(2, at: 0xfff) }
        #expect(throws: DMAError.self) { try memory.load(UInt32.self, at: GuestAddress(0)) }
        #expect(throws: DMAError.self) {
            try memory.forEachSlice(at: GuestAddress(0x1000), count: 0x4000, writable: false) {
                _ in Issue.record("a slice of a range with a hole")
            }
        }
    }

    @Test("an access of 0 bytes succeeds at any address")
    func empty() throws {
        #expect(try memory.bytes(0, at: 0) == [])
        try memory.write([], at: .max)
        try memory.forEachSlice(at: GuestAddress(0), count: 0, writable: true) { slice in
            #expect(slice.count == 0)
        }
    }

    @Test("a range is split into one slice for each region")
    func slices() throws {
        var found: [(UInt64, Int, Bool)] = []
        try memory.forEachSlice(at: GuestAddress(0x1ff0), count: 0x1020, writable: false) {
            found.append(($0.address.rawValue, $0.count, $0.bytes != nil))
        }
        #expect(found.map(\.0) == [0x1ff0, 0x2000, 0x3000])
        #expect(found.map(\.1) == [0x10, 0x1000, 0x10])
        #expect(found.map(\.2) == [true, true, false])
    }

    @Test("a slice is the memory of the guest")
    func sliceBytes() throws {
        try memory.forEachSlice(at: GuestAddress(0x1100), count: 4, writable: true) { slice in
            slice.bytes?.copyBytes(from: [5, 6, 7, 8])
        }
        #expect(try file.read(4, at: 0x100) == [5, 6, 7, 8])
    }

    // MARK: - Remote memory

    @Test("memory without a descriptor is read and written by messages")
    func byMessages() throws {
        try memory.store(0x0a0b_0c0d as UInt32, at: GuestAddress(0x3004))
        #expect(try memory.load(UInt32.self, at: GuestAddress(0x3004)) == 0x0a0b_0c0d)
        #expect(Array(remote.contents[4..<8]) == [0xd, 0xc, 0xb, 0xa])
    }

    @Test("a failed access to remote memory is an error")
    func refused() throws {
        remote.failure = .lost
        #expect(throws: DMAError(.lost, at: GuestAddress(0x3004), count: 4)) {
            try memory.load(UInt32.self, at: GuestAddress(0x3004))
        }
        #expect(throws: DMAError(.lost, at: GuestAddress(0x3004), count: 4)) {
            try memory.store(1 as UInt32, at: GuestAddress(0x3004))
        }
    }

    @Test("without a client that serves it, remote memory cannot be accessed")
    func noClient() throws {
        memory.remote = nil
        #expect(throws: DMAError(.unmapped, at: GuestAddress(0x3000), count: 4)) {
            try memory.load(UInt32.self, at: GuestAddress(0x3000))
        }
        #expect(throws: DMAError.self) {
            try memory.forEachSlice(at: GuestAddress(0x3000), count: 4, writable: false) { _ in }
        }
        #expect(throws: DMAError.self) { try memory.write([1], at: 0x3000) }
    }

    @Test("regions may change during an access to remote memory")
    func changesMeanwhile() throws {
        remote.meanwhile = { [memory] in
            _ = memory.unmapAll()
            try? memory.mapRemote(count: 0x10, at: GuestAddress(0x9000), writable: true)
        }
        // The access continues with the regions at its start.
        let bytes = try memory.bytes(0x20, at: 0x2ff0)
        #expect(bytes == (try file.read(0x10, at: 0x1ff0)) + remote.contents[..<0x10])
        #expect(memory.regionCount == 1)
        #expect(throws: DMAError.self) { try memory.bytes(1, at: 0x1000) }
    }

    @Test("a region that is unmapped during an access to another is not accessed any more")
    func unmapsMeanwhile() throws {
        try memory.map(
            file.descriptor(), offset: 0, count: 0x1000, at: GuestAddress(0x4000), writable: true)
        var unmapped: [MemoryRegion] = []
        remote.meanwhile = { [memory] in
            if let region = try? memory.unmap(GuestAddress(0x4000), count: 0x1000) {
                unmapped.append(region)
            }
        }
        let before = try file.read(16, at: 0)
        #expect(throws: DMAError(.unmapped, at: GuestAddress(0x4000), count: 16)) {
            try memory.write([UInt8](repeating: 0xee, count: 32), at: 0x3ff0)
        }
        #expect(unmapped.count == 1)
        #expect(try file.read(16, at: 0) == before)
    }

    // MARK: - Truncated files

    @Test("an access to memory of a truncated file fails")
    func shrunk() throws {
        let other = try MemoryFile(size: 0x4000)
        try memory.map(
            other.descriptor(), offset: 0, count: 0x4000, at: GuestAddress(0x10000),
            writable: true)
        #expect(try memory.bytes(1, at: 0x13000) == [UInt8(0x3000 % 251)])
        try other.truncate(to: 0x1000)
        #expect(throws: DMAError(.lost, at: GuestAddress(0x13000), count: 4)) {
            try memory.load(UInt32.self, at: GuestAddress(0x13000))
        }
        let record = try #require(
            memory.mappedValue(Record.self, at: GuestAddress(0x13000), writing: true))
        _ = record.loadAcquiring(at: 12)
        #expect(throws: DMAError(.lost, at: GuestAddress(0x13000), count: 16)) {
            try record.checkIntact()
        }
        #expect(throws: DMAError.self) { try memory.bytes(8, at: 0x13000) }
        #expect(throws: DMAError.self) { try memory.write([1], at: 0x13000) }
        #expect(throws: DMAError.self) {
            try memory.forEachSlice(at: GuestAddress(0x10000), count: 1, writable: true) { _ in }
        }
        // Other regions are not affected.
        #expect(try memory.bytes(1, at: 0x1001) == [1])
    }

    @Test("a store to memory of a truncated file fails")
    func shrunkStore() throws {
        let other = try MemoryFile(size: 0x2000)
        try memory.map(
            other.descriptor(), offset: 0, count: 0x2000, at: GuestAddress(0x10000),
            writable: true)
        try other.truncate(to: 0)
        #expect(throws: DMAError.self) { try memory.store(1 as UInt64, at: GuestAddress(0x11000)) }
    }
}
