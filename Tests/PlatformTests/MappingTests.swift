// SPDX-License-Identifier: Apache-2.0

import CLinux
import Glibc
import Platform
import SystemPackage
import TestKit
import Testing

@Suite("mapped files")
struct MappingTests {
    private final class MemoryFile {
        let descriptor: OwnedDescriptor

        init() throws {
            descriptor = OwnedDescriptor(
                owning: try systemCall { clinux_memfd_create("test", CLINUX_MFD_CLOEXEC) })
        }
    }

    private let holder: MemoryFile

    static let size = 0x4000

    init() throws {
        holder = try MemoryFile()
        try resize(Self.size)
    }

    private func resize(_ size: Int) throws {
        let number = holder.descriptor.rawValue
        _ = try systemCall { ftruncate(number, size) }
    }

    private func readFile(_ offset: Int) -> UInt8 {
        var byte: UInt8 = 0
        _ = pread(holder.descriptor.rawValue, &byte, 1, offset)
        return byte
    }

    @Test("a mapping and its file share their bytes")
    func shared() throws {
        let mapping = try Mapping(holder.descriptor, offset: 0x1000, count: 0x1000, writable: true)
        let other = try Mapping(
            holder.descriptor, offset: 0, count: UInt64(Self.size), writable: false)
        mapping.bytes[5] = 42
        #expect(readFile(0x1005) == 42 && other.bytes[0x1005] == 42)
        #expect(mapping.isIntact && other.isIntact)
    }

    @Test("a range beyond the end of the file is refused")
    func beyond() throws {
        for (offset, count): (UInt64, UInt64) in [
            (0, 0x4001), (0x4000, 1), (0x1000, 0x3001), (1 << 61, 1 << 61),
        ] {
            #expect(throws: MappingError.pastEndOfFile(fileSize: 0x4000)) {
                _ = try Mapping(holder.descriptor, offset: offset, count: count, writable: true)
            }
        }
        for (offset, count): (UInt64, UInt64) in [
            (0, 0), (0, .max), (.max, 1), (1 << 63, 1 << 63), (1 << 62, 1 << 62),
        ] {
            #expect(throws: MappingError.invalidRange) {
                _ = try Mapping(holder.descriptor, offset: offset, count: count, writable: true)
            }
        }
        _ = try Mapping(holder.descriptor, offset: 0x3000, count: 0x1000, writable: true)
    }

    @Test("an offset that is not a multiple of the page size is refused")
    func unaligned() {
        #expect(throws: MappingError.misalignedOffset(pageSize: UInt64(getpagesize()))) {
            _ = try Mapping(holder.descriptor, offset: 1, count: 0x1000, writable: true)
        }
    }

    @Test("a pipe is refused")
    func noFile() throws {
        let pipe = try TestPipe()
        #expect(throws: MappingError.failed(.operationNotSupportedByDevice)) {
            _ = try Mapping(pipe.readEnd, offset: 0, count: 4096, writable: false)
        }
    }

    @Test(
        "a truncated file reads as zeroes and its mapping is no longer intact; other mappings are unchanged"
    )
    func shrinks() throws {
        let mapping = try Mapping(
            holder.descriptor, offset: 0, count: UInt64(Self.size), writable: true)
        let other = try Mapping(holder.descriptor, offset: 0, count: 0x1000, writable: true)
        for offset in stride(from: 0, to: Self.size, by: 0x1000) { mapping.bytes[offset] = 7 }
        try resize(0x1000)
        #expect(mapping.isIntact)
        #expect(mapping.bytes[0x2000] == 0)
        #expect(!mapping.isIntact)
        mapping.bytes[0x3fff] = 1
        #expect(mapping.bytes[0] == 7)
        #expect(other.bytes[0] == 7 && other.isIntact)
    }

    @Test("a system call on a truncated mapping fails with EFAULT")
    func shrinksInSystemCall() throws {
        let mapping = try Mapping(
            holder.descriptor, offset: 0, count: UInt64(Self.size), writable: true)
        try resize(0)
        let pipe = try TestPipe()
        try pipe.write([1, 2, 3])
        let start = mapping.bytes.baseAddress
        #expect(throws: Errno.badAddress) {
            try systemCall { Glibc.read(pipe.readEnd.rawValue, start, 3) }
        }
    }

    @Test("1024 mappings can be guarded, one more is refused")
    func guards() async {
        await #expect(processExitsWith: .success) {
            let number = clinux_memfd_create("test", CLINUX_MFD_CLOEXEC)
            let file = OwnedDescriptor(owning: number)
            _ = ftruncate(number, 4096)
            var mappings: [Mapping] = []
            for _ in 0..<CLINUX_GUARD_CAPACITY {
                mappings.append(try Mapping(file, offset: 0, count: 4096, writable: true))
            }
            #expect(throws: MappingError.tooManyMappings) {
                _ = try Mapping(file, offset: 0, count: 4096, writable: true)
            }
            mappings.removeLast()
            mappings.append(try Mapping(file, offset: 0, count: 4096, writable: true))
            #expect(mappings.count == CLINUX_GUARD_CAPACITY)
        }
    }

    @Test("a SIGBUS outside of a guarded mapping ends the process")
    func otherBusErrors() async {
        // The signal ends the process, or a sanitizer that catches it does.
        await #expect(processExitsWith: .failure) {
            let number = clinux_memfd_create("test", CLINUX_MFD_CLOEXEC)
            let file = OwnedDescriptor(owning: number)
            _ = ftruncate(number, 8192)
            let guarded = try Mapping(file, offset: 0, count: 4096, writable: true)
            guard
                let bare = mmap(nil, 8192, PROT_READ, MAP_SHARED, number, 0), bare != MAP_FAILED
            else { return }
            _ = ftruncate(number, 0)
            _ = guarded.bytes[0]
            _ = bare.load(fromByteOffset: 4096, as: UInt8.self)
        }
    }
}
