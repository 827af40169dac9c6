// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import Platform
import TestKit
import Testing

@testable import MassStorage

/// Images in real files.
@Suite struct FileImageTests {
    let file: TemporaryFile

    init() throws { file = try TemporaryFile(size: 1 << 20) { UInt8(truncatingIfNeeded: $0 / 7) } }

    private func open(
        _ path: String? = nil, readOnly: Bool = false, cache: FileImage.CacheMode = .writeback
    ) throws -> FileImage {
        try FileImage(path: path ?? file.path, readOnly: readOnly, cache: cache)
    }

    private func reason(_ body: () throws -> FileImage) -> String {
        do {
            _ = try body()
            return ""
        } catch {
            return (error as? ImageError)?.reason ?? "another error"
        }
    }

    // MARK: - Opening

    @Test func `an image has one writer`() throws {
        let first = try open()
        #expect(reason { try open() }.contains("in use by another program"))
        #expect(reason { try open(readOnly: true) }.contains("in use"))
        withExtendedLifetime(first) {}
    }

    @Test func `readers share an image, and keep writers out`() throws {
        let first = try open(readOnly: true)
        let second = try open(readOnly: true)
        #expect(reason { try open() }.contains("in use"))
        withExtendedLifetime((first, second)) {}
    }

    @Test func `a closed image is unlocked`() throws {
        do { _ = try open() }
        try eventually { _ = try open() }
    }

    @Test(
        "a size that is not a multiple of the block size is refused with a remedy",
        arguments: [1, 511, 513, 1023])
    func oddSize(size: UInt64) throws {
        let odd = try TemporaryFile(size: size)
        let reason = reason { try open(odd.path) }
        #expect(reason.contains("has \(size) bytes, which is not a multiple of 512"))
        #expect(reason.contains("truncate -s %512"))
    }

    @Test func `the smallest image has one block`() throws {
        let empty = try TemporaryFile(size: 0)
        #expect(reason { try open(empty.path) }.contains("is empty"))
        let small = try TemporaryFile(size: 512)
        #expect(try open(small.path).byteCount == 512)
    }

    @Test func `files of other kinds are refused with a reason`() throws {
        #expect(reason { try open("/nowhere/disk.img") }.contains("there is no"))
        #expect(reason { try open("/tmp") }.contains("is a directory"))
        #expect(reason { try open("/dev/null") }.contains("neither a file nor a block device"))
    }

    @Test func `the largest image has 2^48 bytes`() throws {
        // Of the file systems of test machines only tmpfs supports files of this size.
        guard access("/dev/shm", W_OK) == 0 else { return }
        let path = "/dev/shm/stick-\(UUID().uuidString)"
        defer { unlink(path) }
        let descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        defer { close(descriptor) }
        guard ftruncate(descriptor, 1 << 48) == 0 else { return }
        let image = try open(path)
        #expect(image.byteCount == 1 << 48)
        let host = try BulkOnlyHost(image)
        let last: [UInt8] = [0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0]
        let block = [UInt8](repeating: 0x77, count: 512)
        #expect(host.run([0x8a, 0] + last, out: block).status == 0)
        #expect(host.run([0x88, 0] + last, in: 512).data == block)
        let other = path + "-larger"
        defer { unlink(other) }
        let larger = Glibc.open(other, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        defer { close(larger) }
        guard ftruncate(larger, 1 << 48 + 512) == 0 else { return }
        #expect(reason { try open(other) }.contains("at most"))
    }

    // MARK: - Bytes

    @Test(
        "every cache mode reads and writes the same bytes",
        arguments: [FileImage.CacheMode.writeback, .writethrough, .none], [1, 3])
    func caches(cache: FileImage.CacheMode, segments: Int) throws {
        let host = try BulkOnlyHost(open(cache: cache), writeCache: cache != .writethrough)
        host.segments = segments
        let before = file.contents
        // 4096 bytes at block 8 are aligned for direct I/O, 512 bytes at block 3 are not.
        #expect(
            host.run([0x28, 0, 0, 0, 0, 8, 0, 0, 8, 0], in: 4096).data
                == Array(before[4096..<8192]))
        #expect(
            host.run([0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0], in: 512).data
                == Array(before[1536..<2048]))
        let large = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 5) }
        let small = [UInt8](repeating: 0x3c, count: 512)
        #expect(host.run([0x2a, 0, 0, 0, 0, 8, 0, 0, 8, 0], out: large).status == 0)
        #expect(host.run([0x2a, 0, 0, 0, 0, 9, 0, 0, 1, 0], out: small).status == 0)
        #expect(host.run([0x2a, 8, 0, 0, 0, 3, 0, 0, 1, 0], out: small).status == 0)
        #expect(host.run([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).status == 0)
        var expected = before
        expected.replaceSubrange(4096..<8192, with: large)
        expected.replaceSubrange(4608..<5120, with: small)
        expected.replaceSubrange(1536..<2048, with: small)
        #expect(file.contents == expected)
        #expect(
            host.run([0x28, 0, 0, 0, 0, 8, 0, 0, 8, 0], in: 4096).data
                == Array(expected[4096..<8192]))
    }

    @Test func `an image on tmpfs is read and written without waiting`() throws {
        guard access("/dev/shm", W_OK) == 0 else { return }
        let path = "/dev/shm/stick-\(UUID().uuidString)"
        defer { unlink(path) }
        try Data(file.contents).write(to: URL(filePath: path))
        let image = try open(path)
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 1024, alignment: 8)
        defer { bytes.deallocate() }
        var segments = IOVectors()
        segments.append(bytes)
        #expect(try image.read(into: segments, at: 512, waiting: false) == 1024)
        #expect(Array(bytes) == Array(file.contents[512..<1536]))
        #expect(try image.write(segments, at: 4096, durably: false, waiting: false) == 1024)
    }

    @Test func `direct I/O is used where the file system supports it`() throws {
        let image = try open(cache: .none)
        let probe = Glibc.open(file.path, O_RDONLY | O_CLOEXEC | 0x4000)
        defer { close(probe) }
        #expect((image.directError == nil) == (probe >= 0))
        let other = try TemporaryFile(size: 512)
        #expect(try open(other.path).directError == nil)
    }

    @Test func `unmapped blocks are deallocated and read as zeroes`() throws {
        let host = try BulkOnlyHost(open())
        func used() -> Int {
            // Some file systems allocate blocks only when data is written back.
            let descriptor = Glibc.open(file.path, O_RDONLY | O_CLOEXEC)
            defer { close(descriptor) }
            fsync(descriptor)
            var status = stat()
            fstat(descriptor, &status)
            return Int(status.st_blocks)
        }
        let before = used()
        let list = SCSICommandTests.unmapList([(0, 1024)])
        #expect(host.run([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], out: list).status == 0)
        #expect(
            host.run([0x28, 0, 0, 0, 0, 0, 0, 0, 16, 0], in: 8192).data
                == [UInt8](repeating: 0, count: 8192))
        #expect(used() < before)
        #expect(file.contents.count == 1 << 20)
    }

    @Test func `WRITE SAME with NDOB zeroes exactly its range`() throws {
        let host = try BulkOnlyHost(open())
        #expect(
            host.run([0x93, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0]).status == 0)
        #expect(Array(file.contents[..<8192]) == [UInt8](repeating: 0, count: 8192))
        #expect(file.contents[8192] == UInt8(truncatingIfNeeded: 8192 / 7))
    }

    @Test func `reads beyond the end of a truncated file fail, and others succeed`() throws {
        let host = try BulkOnlyHost(open())
        #expect(truncate(file.path, 4096) == 0)
        let result = host.run([0x28, 0, 0, 0, 0, 0, 0, 0, 16, 0], in: 8192)
        #expect(result.status == 1)
        #expect(result.residue == 4096)
        let sense = host.sense()
        #expect(sense.code == 0x1100)
        #expect(sense.bytes.bigEndian(3..<7) == 8)
        #expect(host.run([0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0], in: 4096).status == 0)
    }

    @Test func `random writes through files agree with a model`() throws {
        var random = SplitMix64(seed: 42)
        for cache in FileImage.CacheMode.allCases {
            let host = try BulkOnlyHost(eventually { try open(cache: cache) })
            var model = file.contents
            for _ in 0..<200 {
                host.segments = Int.random(in: 1...4, using: &random)
                let first = Int.random(in: 0..<240, using: &random)
                let count = Int.random(in: 1...16, using: &random)
                let range = first * 512..<(first + count) * 512
                let fields = [0, 0, 0, 0, UInt8(first), 0, 0, UInt8(count), 0]
                if Bool.random(using: &random) {
                    let data = range.map { _ in UInt8.random(in: 0...255, using: &random) }
                    model.replaceSubrange(range, with: data)
                    #expect(host.run([0x2a] + fields, out: data).status == 0)
                } else {
                    #expect(host.run([0x28] + fields, in: range.count).data == Array(model[range]))
                }
            }
            #expect(file.contents == model)
        }
    }
}
