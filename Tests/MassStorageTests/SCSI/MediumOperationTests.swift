// SPDX-License-Identifier: Apache-2.0

import Platform
import SystemPackage
import TestKit
import Testing
import USB

@testable import MassStorage

/// Effects of commands on the medium, and the sense data of its errors.
@Suite struct MediumOperationTests {
    let image = FakeImage(byteCount: 1 << 20)
    let host: BulkOnlyHost
    let read8: [UInt8] = [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0]
    let write8: [UInt8] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0]
    let flush: [UInt8] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    let data = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 13) }

    init() throws { host = try BulkOnlyHost(image) }

    // MARK: - Reading and writing

    @Test(
        "an image that would block is read and written by the worker",
        arguments: [
            FakeImage.NonblockingAccess.served, .servedUpTo(1), .servedUpTo(1000), .wouldBlock,
            .notSupported,
        ])
    func nonblocking(_ nonblocking: FakeImage.NonblockingAccess) {
        image.set { $0.nonblocking = nonblocking }
        for _ in 0..<3 {
            #expect(host.run(write8, out: data).status == 0)
            #expect(host.run(read8, in: 4096).data == data)
        }
        #expect(image.bytes(at: 0, count: 4096) == data)
    }

    @Test func `data in the page cache are read without the worker`() {
        let id = host.submitOut(
            host.wrapper(read8, length: 4096, direction: .in, tag: 1))
        let read = host.submitIn(4096)
        let status = host.submitIn(13)
        // The event loop has not run.
        #expect(host.isDone(id) && host.isDone(read) && host.isDone(status))
    }

    @Test func `a short read or write is continued`() {
        image.set {
            $0.largestAccess = 700
            $0.nonblocking = .wouldBlock
        }
        #expect(host.run(write8, out: data).status == 0)
        #expect(host.run(read8, in: 4096).data == data)
    }

    @Test func `writes with FUA or a disabled write cache are durable`() throws {
        #expect(host.run([0x2a, 8, 0, 0, 0, 0, 0, 0, 8, 0], out: data).status == 0)
        #expect(image.log == [.write(0, 4096, durably: true)])
        let through = FakeImage(byteCount: 1 << 20)
        let other = try BulkOnlyHost(through, writeCache: false)
        #expect(other.run(write8, out: data).status == 0)
        #expect(through.log == [.write(0, 4096, durably: true)])
        #expect(other.run([0x1a, 8, 0x08, 0, 255, 0], in: 24).data[6] == 0)
    }

    @Test func `SYNCHRONIZE CACHE flushes the image before its status`() {
        #expect(host.run(write8, out: data).status == 0)
        #expect(image.flushCount == 0)
        #expect(host.run(flush).status == 0)
        #expect(image.flushCount == 1)
        #expect(host.run([0x91] + [UInt8](repeating: 0, count: 15)).status == 0)
        #expect(image.flushCount == 2)
    }

    @Test func `clearing WCE flushes the image and makes later writes durable`() {
        let select: [UInt8] = [0x15, 0x10, 0, 0, 24, 0]
        let page: [UInt8] = [0, 0, 0, 0, 8, 18] + [UInt8](repeating: 0, count: 18)
        #expect(host.run(select, out: page).status == 0)
        #expect(image.flushCount == 1)
        #expect(host.run(write8, out: data).status == 0)
        #expect(image.log.last == .write(0, 4096, durably: true))
    }

    @Test func `an eject flushes the image and removes the medium`() {
        #expect(host.run([0x1b, 0, 0, 0, 2, 0]).status == 0)
        #expect(image.flushCount == 1)
        #expect(host.run(read8, in: 4096).status == 1)
        #expect(host.sense() == (2, 0x3a00, host.sense().bytes))
        #expect(host.run([0x1b, 0, 0, 0, 3, 0]).status == 0)
        #expect(host.run(read8, in: 4096).status == 1)
        #expect(host.sense().code == 0x2800)
        #expect(host.run(read8, in: 4096).status == 0)
    }

    // MARK: - Verifying

    @Test func `VERIFY with BYTCHK compares the Data-Out bytes with the medium`() {
        image.fill(at: 0, data)
        let verify: [UInt8] = [0x2f, 2, 0, 0, 0, 0, 0, 0, 8, 0]
        #expect(host.run(verify, out: data).status == 0)
        #expect(host.run(verify, out: data, chunk: 1024).status == 0)
        var other = data
        other[4095] ^= 1
        #expect(host.run(verify, out: other).status == 1)
        #expect(host.sense().key == 0xe)
        #expect(host.sense().code == 0)
        // After a miscompare in the first transfer the rest is refused.
        other[0] ^= 1
        let result = host.run(verify, out: other, chunk: 1024)
        #expect(result.status == 1)
        #expect(result.residue == 4096)
    }

    @Test func `VERIFY without BYTCHK reads the medium`() {
        #expect(host.run([0x2f, 0, 0, 0, 0, 0, 0, 8, 0, 0]).status == 0)
        #expect(image.log.allSatisfy { if case .read = $0 { true } else { false } })
        image.set { $0.fault = { if case .read = $0 { .ioError } else { nil } } }
        #expect(host.run([0x2f, 0, 0, 0, 0, 5, 0, 0, 1, 0]).status == 1)
        let sense = host.sense()
        #expect(sense.code == 0x1100)
        #expect(sense.bytes.bigEndian(3..<7) == 5)
    }

    // MARK: - Unmapping and filling

    @Test func `UNMAP punches a hole for each range`() {
        image.fill(at: 0, data)
        let list = SCSICommandTests.unmapList([(1, 2), (4, 1)])
        #expect(
            host.run([0x42, 0, 0, 0, 0, 0, 0, 0, UInt8(list.count), 0], out: list).status == 0)
        #expect(image.log == [.punch(512, 1024), .punch(2048, 512)])
        #expect(image.bytes(at: 512, count: 1024) == [UInt8](repeating: 0, count: 1024))
        #expect(image.bytes(at: 0, count: 512) == Array(data[..<512]))
    }

    @Test func `UNMAP of an image without hole punching succeeds and keeps the data`() {
        image.fill(at: 0, data)
        image.set { $0.fault = { if case .punch = $0 { .notSupported } else { nil } } }
        let list = SCSICommandTests.unmapList([(1, 2)])
        #expect(host.run([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], out: list).status == 0)
        #expect(image.bytes(at: 0, count: 4096) == data)
    }

    @Test func `WRITE SAME of zeroes punches a hole, zeroes a range or writes`() {
        let zeroes = [UInt8](repeating: 0, count: 512)
        image.fill(at: 0, data)
        #expect(host.run([0x41, 8, 0, 0, 0, 1, 0, 0, 2, 0], out: zeroes).status == 0)
        #expect(host.run([0x41, 0, 0, 0, 0, 4, 0, 0, 1, 0], out: zeroes).status == 0)
        #expect(image.log == [.punch(512, 1024), .zero(2048, 512)])
        image.set {
            $0.fault = {
                switch $0 {
                case .punch, .zero: .notSupported
                default: nil
                }
            }
        }
        #expect(host.run([0x41, 8, 0, 0, 0, 6, 0, 0, 2, 0], out: zeroes).status == 0)
        #expect(image.bytes(at: 3072, count: 1024) == [UInt8](repeating: 0, count: 1024))
        #expect(image.bytes(at: 2560, count: 512) == Array(data[2560..<3072]))
    }

    @Test func `WRITE SAME writes its block over the whole range`() {
        let pattern = (0..<512).map { UInt8(truncatingIfNeeded: $0 &* 3) }
        #expect(host.run([0x41, 0, 0, 0, 0, 1, 0, 0x04, 0x01, 0], out: pattern).status == 0)
        #expect(
            image.bytes(at: 512, count: 1025 * 512)
                == [UInt8]((0..<1025).map { _ in pattern }.joined()))
        #expect(image.bytes(at: 0, count: 512) == [UInt8](repeating: 0, count: 512))
        #expect(image.bytes(at: 1026 * 512, count: 512) == [UInt8](repeating: 0, count: 512))
    }

    @Test func `WRITE SAME with NDOB has no data stage`() {
        image.fill(at: 0, data)
        let command: [UInt8] = [0x93, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0]
        #expect(host.run(command).status == 0)
        #expect(image.bytes(at: 0, count: 4096) == [UInt8](repeating: 0, count: 4096))
    }

    @Test func `with a disabled write cache UNMAP flushes the image before its status`() throws {
        let host = try BulkOnlyHost(image, writeCache: false)
        let list = SCSICommandTests.unmapList([(1, 2)])
        #expect(host.run([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], out: list).status == 0)
        #expect(image.log == [.punch(512, 1024), .flush])
    }

    // MARK: - Errors

    @Test(
        "a read error reports the bad block and sends the blocks before it",
        arguments: [true, false])
    func readError(chunked: Bool) {
        image.fill(at: 0, data)
        image.set {
            $0.nonblocking = .wouldBlock
            $0.largestAccess = 512
            $0.fault = {
                if case .read(let offset, _) = $0, offset >= 2560 { .ioError } else { nil }
            }
        }
        let result = host.run(read8, in: 4096, chunk: chunked ? 1024 : .max)
        #expect(result.data == Array(data[..<2560]))
        #expect(result.status == 1)
        #expect(result.residue == 4096 - 2560)
        let sense = host.sense()
        #expect(sense.key == 3)
        #expect(sense.code == 0x1100)
        #expect(sense.bytes[0] == 0xf0)
        #expect(sense.bytes.bigEndian(3..<7) == 5)
        image.set { $0.fault = { _ in nil } }
        #expect(host.run(read8, in: 4096).data == data)
    }

    @Test func `the end of a truncated file is a read error`() {
        image.set {
            $0.nonblocking = .wouldBlock
            $0.largestAccess = 0
        }
        #expect(host.run(read8, in: 4096).status == 1)
        #expect(host.sense().code == 0x1100)
    }

    @Test(
        "a write error is mapped to sense data",
        arguments: [
            (Errno.noSpace, 0x7, 0x2707), (.diskQuotaExceeded, 0x7, 0x2707),
            (.fileTooLarge, 0x7, 0x2707), (.ioError, 0x3, 0x0c00),
            (.readOnlyFileSystem, 0x7, 0x2700), (.notPermitted, 0x7, 0x2700),
            (.badAddress, 0xb, 0x4b00),
        ] as [(Errno, UInt8, UInt16)])
    func writeError(error: Errno, key: UInt8, code: UInt16) {
        image.set { $0.fault = { if case .write = $0 { error } else { nil } } }
        let result = host.run(write8, out: data)
        #expect(result.status == 1)
        #expect(result.residue == 4096)
        let sense = host.sense()
        #expect(sense.key == key)
        #expect(sense.code == code)
        image.set { $0.fault = { _ in nil } }
        #expect(host.run(write8, out: data).status == 0)
    }

    @Test func `the residue of a failed write counts the blocks before the error`() {
        image.set {
            $0.nonblocking = .wouldBlock
            $0.largestAccess = 512
            $0.fault = {
                if case .write(let offset, _, _) = $0, offset >= 1536 { .noSpace } else { nil }
            }
        }
        let result = host.run(write8, out: data, chunk: 1024)
        #expect(result.status == 1)
        #expect(result.residue == 4096 - 1536)
        #expect(image.bytes(at: 0, count: 1536) == Array(data[..<1536]))
        #expect(host.sense().code == 0x2707)
    }

    @Test func `a flush error fails its command`() {
        image.set { $0.fault = { $0 == .flush ? .ioError : nil } }
        #expect(host.run(flush).status == 1)
        #expect(host.sense().code == 0x0c00)
        // A failed eject leaves the medium loaded.
        #expect(host.run([0x1b, 0, 0, 0, 2, 0]).status == 1)
        image.set { $0.fault = { _ in nil } }
        #expect(host.run(read8, in: 4096).status == 0)
        #expect(host.run(flush).status == 0)
    }

    /// The kernel reports a writeback error to one flush only.
    @Test func `a flush error that the host has not received fails the next flush`() {
        image.set {
            let isFirst = Locked(true)
            $0.fault = { operation in
                guard operation == .flush else { return nil }
                return isFirst.withLock { first in
                    defer { first = false }
                    return first ? .ioError : nil
                }
            }
        }
        image.shutGate()
        _ = host.submitOut(host.wrapper(flush, length: 0, direction: .out, tag: 1))
        let status = host.submitIn(13)
        #expect(!host.isDone(status))
        host.device.reset()
        host.setConfiguration(1)
        image.openGate()
        host.waitUntilIdle()
        #expect(host.run(flush).status == 1)
        #expect(host.sense().code == 0x0c00)
        #expect(host.run(flush).status == 0)
        #expect(image.flushCount == 3)
    }

    @Test
    func
        `UNMAP keeps and WRITE SAME writes a range that is not aligned to the disk's blocks`()
    {
        image.set {
            $0.fault = {
                switch $0 {
                case .punch, .zero: .invalidArgument
                default: nil
                }
            }
        }
        image.fill(at: 0, Array(repeating: 7, count: 1024))
        let unmap: [UInt8] =
            [0, 22, 0, 16, 0, 0, 0, 0] + [UInt8](repeating: 0, count: 8) + [0, 0, 0, 1, 0, 0, 0, 0]
        #expect(host.run([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], out: unmap).status == 0)
        #expect(image.bytes(at: 0, count: 1) == [7])
        let zeroes = [UInt8](repeating: 0, count: 512)
        #expect(host.run([0x41, 0, 0, 0, 0, 1, 0, 0, 1, 0], out: zeroes).status == 0)
        #expect(image.bytes(at: 0, count: 1024) == Array(repeating: 7, count: 512) + zeroes)
    }

    @Test func `the error of a background flush is a deferred error of the next command`() {
        image.set { $0.fault = { $0 == .flush ? .ioError : nil } }
        #expect(host.run([0x35, 2, 0, 0, 0, 0, 0, 0, 0, 0]).status == 0)
        host.waitUntilIdle()
        #expect(host.run(read8, in: 4096).status == 1)
        let sense = host.sense()
        #expect(sense.bytes[0] == 0x71)
        #expect(sense.code == 0x0c00)
        #expect(host.run(read8, in: 4096).status == 0)
    }

    @Test func `the status of a second background flush waits for the first`() {
        image.shutGate()
        let immediately: [UInt8] = [0x35, 2, 0, 0, 0, 0, 0, 0, 0, 0]
        func submit(_ tag: UInt32) -> Transfer.ID {
            _ = host.submitOut(host.wrapper(immediately, length: 0, direction: .out, tag: tag))
            return host.submitIn(13)
        }
        #expect(host.isDone(submit(1)))
        let second = submit(2)
        #expect(!host.isDone(second))
        image.openGate()
        #expect(host.wait(second)?.status == .completed)
        #expect(image.flushCount == 2)
        #expect(host.run(immediately).status == 0)
    }

    @Test func `a reset cancels VERIFY of a huge medium`() throws {
        let image = FakeImage(byteCount: 1 << 48)
        let host = try BulkOnlyHost(image)
        let all: [UInt8] =
            [0x8f, 0] + [UInt8](repeating: 0, count: 8) + [255, 255, 255, 255, 0, 0]
        _ = host.submitOut(host.wrapper(all, length: 0, direction: .out, tag: 1))
        let status = host.submitIn(13)
        #expect(!host.isDone(status))
        host.device.reset()
        host.setConfiguration(1)
        #expect(host.run(read8, in: 4096).status == 0)
        #expect(image.log.count < 1_000_000)
    }

    @Test func `errors of UNMAP and WRITE SAME are reported`() {
        image.set { $0.fault = { _ in .ioError } }
        let list = SCSICommandTests.unmapList([(1, 2)])
        #expect(host.run([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], out: list).status == 1)
        #expect(host.sense().bytes.bigEndian(3..<7) == 1)
        let pattern = [UInt8](repeating: 1, count: 512)
        image.set { $0.fault = { _ in .noSpace } }
        #expect(host.run([0x41, 0, 0, 0, 0, 4, 0, 0, 1, 0], out: pattern).status == 1)
        #expect(host.sense().code == 0x2707)
    }

    @Test func `a read-only image is write-protected`() throws {
        let image = FakeImage(byteCount: 1 << 20, readOnly: true)
        let host = try BulkOnlyHost(image)
        let result = host.run(write8, out: data)
        #expect(result.status == 1)
        #expect(host.sense().code == 0x2700)
        #expect(host.run(flush).status == 0)
        #expect(host.run([0x1b, 0, 0, 0, 2, 0]).status == 0)
        #expect(image.log.isEmpty)
    }

    @Test func `the last block of a 2^48 byte medium is read and written`() throws {
        let image = FakeImage(byteCount: 1 << 48)
        let host = try BulkOnlyHost(image)
        let last: [UInt8] = [0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0]
        let block = [UInt8](repeating: 0x77, count: 512)
        #expect(host.run([0x8a, 0] + last, out: block).status == 0)
        #expect(host.run([0x88, 0] + last, in: 512).data == block)
        #expect(image.bytes(at: (1 << 48) - 512, count: 512) == block)
        let beyond: [UInt8] = [0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 2, 0, 0]
        #expect(host.run([0x88, 0] + beyond, in: 1024).status == 1)
        #expect(host.sense().code == 0x2100)
    }

    // MARK: - Random commands

    @Test("random reads and writes agree with a model", arguments: 1...8)
    func oracle(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let blocks = 128
        let image = FakeImage(byteCount: UInt64(blocks * 512))
        let host = try BulkOnlyHost(image, speed: seed % 2 == 0 ? .high : .superSpeed)
        var model = [UInt8](repeating: 0, count: blocks * 512)
        for step in 0..<300 {
            let largest = Int.random(in: 1...5000, using: &random)
            let nonblocking: FakeImage.NonblockingAccess = [
                .served, .servedUpTo(largest), .wouldBlock,
            ][Int.random(in: 0..<3, using: &random)]
            image.set {
                $0.nonblocking = nonblocking
                $0.largestAccess = largest
            }
            host.segments = Int.random(in: 1...5, using: &random)
            let first = Int.random(in: 0..<blocks, using: &random)
            let count = Int.random(in: 1...min(24, blocks - first), using: &random)
            let range = first * 512..<(first + count) * 512
            let chunk =
                Bool.random(using: &random) ? 1024 * Int.random(in: 1...4, using: &random) : .max
            let fields = [0, 0, 0, 0, UInt8(first), 0, 0, UInt8(count), 0]
            switch Int.random(in: 0..<4, using: &random) {
            case 0, 1:
                let data = range.map { _ in UInt8.random(in: 0...255, using: &random) }
                model.replaceSubrange(range, with: data)
                #expect(host.run([0x2a] + fields, out: data, chunk: chunk).status == 0)
            case 2:
                let list = SCSICommandTests.unmapList([(UInt64(first), UInt32(count))])
                model.replaceSubrange(range, with: [UInt8](repeating: 0, count: range.count))
                #expect(host.run([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], out: list).status == 0)
            default:
                let result = host.run([0x28] + fields, in: range.count, chunk: chunk)
                #expect(result.data == Array(model[range]), "step \(step)")
                #expect(result.status == 0)
            }
        }
        #expect(image.bytes(at: 0, count: model.count) == model)
        #expect(host.port.doubles.isEmpty)
    }
}
