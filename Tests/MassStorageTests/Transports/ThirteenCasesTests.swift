// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

@testable import MassStorage

/// The thirteen cases of Bulk-Only Transport 6.7: the host's expectation (Hn: no data, Hi: IN, Ho:
/// OUT) against the device's intent (Dn, Di, Do).
@Suite struct ThirteenCasesTests {
    let image = FakeImage(byteCount: 1 << 20)
    let host: BulkOnlyHost
    let read1: [UInt8] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    let write1: [UInt8] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    let ready: [UInt8] = [0, 0, 0, 0, 0, 0]

    init() throws {
        image.fill(at: 0, [UInt8](repeating: 0x11, count: 4096))
        host = try BulkOnlyHost(image)
    }

    /// Checks that the next command works, as it must after each case.
    private func expectOperational() {
        #expect(host.run(read1, in: 512).status == 0)
    }

    private let untouched = [UInt8](repeating: 0x11, count: 4096)

    @Test func `1 Hn = Dn: passed`() {
        #expect(host.run(ready) == .init(status: 0))
        expectOperational()
    }

    @Test func `2 Hn < Di: phase error`() {
        #expect(host.run(read1) == .init(status: 2))
        expectOperational()
    }

    @Test func `3 Hn < Do: phase error, nothing is written`() {
        #expect(host.run(write1) == .init(status: 2))
        #expect(image.bytes(at: 0, count: 4096) == untouched)
        expectOperational()
    }

    @Test func `4 Hi > Dn: the IN endpoint halts, passed with the whole residue`() {
        #expect(
            host.run(ready, in: 512)
                == .init(dataStatus: .stalled, status: 0, residue: 512))
        expectOperational()
    }

    @Test func `5 Hi > Di: a short packet, then the IN endpoint halts`() {
        let result = host.run([0x12, 0, 0, 0, 36, 0], in: 96)
        #expect(result.data.count == 36)
        #expect(result.dataStatus == .completed)
        #expect(result.statusStalled)
        #expect(result.status == 0)
        #expect(result.residue == 60)
        expectOperational()
    }

    @Test func `5 Hi > Di with full packets only`() {
        let result = host.run([0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], in: 4096)
        #expect(result.data.count == 1024)
        #expect(result.statusStalled)
        #expect(result.status == 0)
        #expect(result.residue == 3072)
        expectOperational()
    }

    @Test func `6 Hi = Di: passed`() {
        let result = host.run(read1, in: 512)
        #expect(
            result
                == .init(
                    data: Array(untouched[..<512]), dataStatus: .completed, status: 0))
        expectOperational()
    }

    @Test func `7 Hi < Di: the IN endpoint halts, phase error`() {
        let result = host.run([0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], in: 512)
        #expect(result == .init(dataStatus: .stalled, status: 2, residue: 512))
        expectOperational()
    }

    @Test func `8 Hi <> Do: the IN endpoint halts, phase error, nothing is written`() {
        let result = host.run(write1, in: 512)
        #expect(result == .init(dataStatus: .stalled, status: 2, residue: 512))
        #expect(image.bytes(at: 0, count: 4096) == untouched)
        expectOperational()
    }

    @Test func `9 Ho > Dn: the OUT endpoint halts, passed with the whole residue`() {
        let result = host.run(ready, out: [UInt8](repeating: 9, count: 512))
        #expect(result == .init(dataStatus: .stalled, status: 0, residue: 512))
        expectOperational()
    }

    @Test func `10 Ho <> Di: the OUT endpoint halts, phase error`() {
        let result = host.run(read1, out: [UInt8](repeating: 9, count: 512))
        #expect(result == .init(dataStatus: .stalled, status: 2, residue: 512))
        expectOperational()
    }

    @Test(arguments: [2048, 1024, 512])
    func `11 Ho > Do: the device's data are written, then the OUT endpoint halts`(chunk: Int) {
        let data = [UInt8](repeating: 9, count: 2048)
        let result = host.run([0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0], out: data, chunk: chunk)
        if chunk == 512 {
            // At SuperSpeed 512 bytes are a short packet, which ends the data stage early.
            #expect(result.status == 2)
        } else {
            #expect(result.dataStatus == .stalled)
            #expect(result.status == 0)
            #expect(result.residue == 1024)
            #expect(image.bytes(at: 0, count: 1024) == Array(data[..<1024]))
        }
        #expect(image.bytes(at: 1024, count: 1024) == Array(untouched[..<1024]))
        expectOperational()
    }

    @Test func `12 Ho = Do: passed`() {
        let data = [UInt8](repeating: 9, count: 512)
        #expect(host.run(write1, out: data) == .init(dataStatus: .completed, status: 0))
        #expect(image.bytes(at: 0, count: 512) == data)
        expectOperational()
    }

    @Test func `13 Ho < Do: the OUT endpoint halts, phase error, nothing is written`() {
        let result = host.run(
            [0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0], out: [UInt8](repeating: 9, count: 512))
        #expect(result == .init(dataStatus: .stalled, status: 2, residue: 512))
        #expect(image.bytes(at: 0, count: 4096) == untouched)
        expectOperational()
    }

    @Test func `a failed command has no data stage`() {
        let beyond: [UInt8] = [0x28, 0, 0, 0, 0x80, 0, 0, 0, 1, 0]
        #expect(
            host.run(beyond, in: 512) == .init(dataStatus: .stalled, status: 1, residue: 512))
        #expect(host.sense().code == 0x2100)
        let write: [UInt8] = [0x2a, 0, 0, 0, 0x80, 0, 0, 0, 1, 0]
        #expect(
            host.run(write, out: [UInt8](repeating: 1, count: 512))
                == .init(dataStatus: .stalled, status: 1, residue: 512))
        #expect(host.run(beyond) == .init(status: 1))
        expectOperational()
    }

    @Test func `the direction of a CBW without data is ignored`() {
        let id = host.submitOut(host.wrapper(ready, length: 0, direction: .in, tag: 7))
        #expect(host.wait(id)?.status == .completed)
        let status = host.submitIn(13)
        #expect(host.wait(status)?.transferred == 13)
        #expect(host.bytes(status) == [0x55, 0x53, 0x42, 0x53, 7, 0, 0, 0, 0, 0, 0, 0, 0])
    }
}
