// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

@testable import MassStorage

@Suite struct MassStorageDeviceTests {
    let file: TemporaryFile
    let host: BulkOnlyHost

    init() throws {
        file = try TemporaryFile(size: 1 << 20) { UInt8(truncatingIfNeeded: $0 / 512 &+ $0) }
        host = try BulkOnlyHost(
            FileImage(path: file.path, readOnly: false, cache: .writeback))
    }

    @Test func `a read returns the image's bytes`() {
        let result = host.run([0x28, 0, 0, 0, 0, 8, 0, 0, 16, 0], in: 8192)
        #expect(result.status == 0)
        #expect(result.residue == 0)
        #expect(result.data == Array(file.contents[4096..<12288]))
    }

    @Test func `a write is in the file before its status`() {
        let data = (0..<8192).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        let result = host.run([0x2a, 0, 0, 0, 0, 8, 0, 0, 16, 0], out: data)
        #expect(result.status == 0)
        #expect(Array(file.contents[4096..<12288]) == data)
    }

    @Test func `INQUIRY and READ CAPACITY identify the device`() {
        #expect(host.run([0, 0, 0, 0, 0, 0]).status == 0)
        let inquiry = host.run([0x12, 0, 0, 0, 36, 0], in: 36)
        #expect(inquiry.status == 0)
        #expect(String(decoding: inquiry.data[8..<16], as: UTF8.self) == "usbvfiod")
        let capacity = host.run([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], in: 8)
        #expect(capacity.data == [0, 0, 0x07, 0xff, 0, 0, 2, 0])
    }
}
