// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing

@Suite("byte order")
struct ByteOrderTests {
    let bytes: [UInt8] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

    @Test("a little-endian integer has its least significant byte first")
    func littleEndian() {
        #expect(bytes.littleEndian(UInt8.self, at: 9) == 9)
        #expect(bytes.littleEndian(UInt16.self, at: 1) == 0x0201)
        #expect(bytes.littleEndian(UInt32.self, at: 3) == 0x0605_0403)
        #expect(bytes.littleEndian(UInt64.self, at: 2) == 0x0908_0706_0504_0302)
        #expect(bytes.span.littleEndian(UInt32.self, at: 6) == 0x0908_0706)
    }

    @Test("a big-endian integer has its most significant byte first")
    func bigEndian() {
        #expect(bytes.bigEndian(UInt8.self, at: 9) == 9)
        #expect(bytes.bigEndian(UInt16.self, at: 1) == 0x0102)
        #expect(bytes.bigEndian(UInt32.self, at: 3) == 0x0304_0506)
        #expect(bytes.bigEndian(UInt64.self, at: 2) == 0x0203_0405_0607_0809)
        #expect(bytes.span.bigEndian(UInt32.self, at: 6) == 0x0607_0809)
        #expect(bytes.bigEndian(1..<4) == 0x01_0203 && bytes.bigEndian(4..<4) == 0)
    }

    @Test("an integer that is written is read back")
    func written() {
        var written = [UInt8](littleEndian: 0x0201 as UInt16)
        written.append(littleEndian: 0x0605_0403 as UInt32)
        written.append(bigEndian: 0x0708 as UInt16)
        #expect(written == [1, 2, 3, 4, 5, 6, 7, 8])
        written.store(bigEndian: 0xa0a1_a2a3 as UInt32, at: 2)
        #expect(written == [1, 2, 0xa0, 0xa1, 0xa2, 0xa3, 7, 8])
        #expect([UInt8](bigEndian: 0x0102_0304 as UInt32) == [1, 2, 3, 4])
    }
}
