// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing
import VFIOClient

@testable import VFIOUser

@Suite("REGION_READ and REGION_WRITE")
struct RegionTests {
    let harness: Harness
    var device: TestDevice { harness.device }

    init() throws { harness = try Harness.ready() }

    @Test("a register is read")
    func read() throws {
        device.contents[0].replaceSubrange(0x20..<0x24, with: [0xef, 0xbe, 0xad, 0xde])
        let answer = try harness.exchange(
            hex(
                """
                0900 0900 20000000 00000000 00000000  # number 9, REGION_READ, 32 bytes
                2000000000000000 00000000 04000000    # offset 0x20, region 0, 4 bytes
                """))
        #expect(
            answer
                == hex(
                    """
                    0900 0900 24000000 01000000 00000000  # a reply of 36 bytes
                    2000000000000000 00000000 04000000    # the same fields
                    efbeadde
                    """))
    }

    @Test("a register is written")
    func write() throws {
        let answer = try harness.exchange(
            hex(
                """
                0a00 0a00 24000000 00000000 00000000  # number 10, REGION_WRITE, 36 bytes
                4000000000000000 00000000 04000000    # offset 0x40, region 0, 4 bytes
                01020304
                """))
        #expect(
            answer
                == hex(
                    """
                    0a00 0a00 20000000 01000000 00000000  # a reply of 32 bytes
                    4000000000000000 00000000 04000000
                    """))
        #expect(device.writes == [.init(region: 0, offset: 0x40, bytes: [1, 2, 3, 4])])
    }

    @Test(
        "every size at every alignment is read and written",
        arguments: [1, 2, 3, 4, 5, 8, 9, 64, 4096])
    func sizes(count: Int) throws {
        for offset in [0, 1, 2, 3, 0x1001] {
            let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 + offset) }
            let written = try harness.client.request(
                10,
                WireMessage.region(0, offset: UInt64(offset), count: UInt32(count), data: bytes))
            #expect(!written.isError && written.size == 32)
            let read = try harness.client.request(
                9, WireMessage.region(0, offset: UInt64(offset), count: UInt32(count)))
            #expect(!read.isError && Array(read.payload[16...]) == bytes)
        }
    }

    @Test("the whole configuration space is read with one message")
    func wholeConfiguration() throws {
        let reply = try harness.client.request(9, WireMessage.region(7, offset: 0, count: 4096))
        #expect(Array(reply.payload[16...]) == device.contents[7])
    }

    @Test("a read of 0 bytes returns no data")
    func nothing() throws {
        let read = try harness.client.request(9, WireMessage.region(0, offset: 0, count: 0))
        #expect(!read.isError && read.size == 32)
        let written = try harness.client.request(10, WireMessage.region(0, offset: 0, count: 0))
        #expect(!written.isError && written.size == 32)
        #expect(device.writes.isEmpty)
    }

    struct Outside: CustomStringConvertible, Sendable {
        let region: UInt32, offset: UInt64, count: UInt32
        var description: String { "region \(region), offset \(offset), \(count) bytes" }
    }

    static let outside = [
        Outside(region: 0, offset: 0x3ffd, count: 4), Outside(region: 0, offset: 0x4000, count: 1),
        Outside(region: 0, offset: .max, count: 4), Outside(region: 0, offset: .max - 3, count: 4),
        Outside(region: 7, offset: 4096, count: 4), Outside(region: 1, offset: 0, count: 1),
        Outside(region: 9, offset: 0, count: 4), Outside(region: .max, offset: 0, count: 4),
        Outside(region: 0, offset: 1 << 63, count: 8),
    ]

    // The client of rust-vmm reads 32 bytes and the data even of an error. A header alone, which
    // the protocol document specifies, would block a processor of the guest forever.
    @Test(
        "a read outside of the regions returns all-ones with the error flag", arguments: outside
    )
    func readOutside(_ access: Outside) throws {
        let reply = try harness.client.request(
            9, WireMessage.region(access.region, offset: access.offset, count: access.count))
        #expect(reply.size == 32 + Int(access.count))
        #expect(reply.isError && reply.error == 22)
        #expect(reply.payload[16...].allSatisfy { $0 == 0xff })
        #expect(try harness.isAlive())
    }

    @Test("a write outside of the regions fails and reaches no region", arguments: outside)
    func writeOutside(_ access: Outside) throws {
        let reply = try harness.client.request(
            10,
            WireMessage.region(
                access.region, offset: access.offset, count: access.count,
                data: [UInt8](repeating: 5, count: Int(access.count))))
        #expect(reply.size == 32)
        #expect(reply.isError && reply.error == 22)
        #expect(device.writes.isEmpty)
    }

    @Test("the last byte of a region is read, the byte behind it is not")
    func lastByte() throws {
        let last = try harness.client.request(9, WireMessage.region(0, offset: 0x3fff, count: 1))
        #expect(!last.isError)
        let behind = try harness.client.request(9, WireMessage.region(0, offset: 0x4000, count: 1))
        #expect(behind.isError)
    }

    @Test("a read of a write-only region and a write of a read-only region fail")
    func access() throws {
        let read = try harness.client.request(
            9, WireMessage.region(UInt32(TestDevice.writeOnly), offset: 0, count: 4))
        #expect(read.isError && read.size == 36)
        let written = try harness.client.request(
            10,
            WireMessage.region(UInt32(TestDevice.readOnly), offset: 0, count: 1, data: [1]))
        #expect(written.isError && written.size == 32)
    }

    @Test("a read of 1 MiB is answered, one byte more is refused")
    func longestRead() throws {
        let most = UInt32(VFIOUserLimits.dataTransfer)
        let longest = try harness.client.request(9, WireMessage.region(0, offset: 0, count: most))
        // The read fails, because region 0 is shorter, but the size of the reply is that of the
        // read.
        #expect(longest.size == 32 + VFIOUserLimits.dataTransfer)
        let more = try harness.client.request(9, WireMessage.region(0, offset: 0, count: most + 1))
        #expect(more.isError && more.size == 16)
        let most32 = try harness.client.request(9, WireMessage.region(0, offset: 0, count: .max))
        #expect(most32.isError && most32.size == 16)
        #expect(try harness.isAlive())
    }

    @Test(
        "a write whose data has another length than its count fails", arguments: [3, 5, 0])
    func countMismatch(count: Int) throws {
        let reply = try harness.client.request(
            10,
            WireMessage.region(
                0, offset: 0, count: 4, data: [UInt8](repeating: 1, count: count)))
        #expect(reply.isError && reply.size == 32)
        #expect(device.writes.isEmpty)
    }

    @Test("an access without all of its fields is refused", arguments: [9, 10])
    func tooShort(command: UInt16) throws {
        let reply = try harness.client.request(command, [UInt8](repeating: 0, count: 15))
        #expect(reply.isError && reply.size == 16)
    }

    @Test("posted writes get no reply and take effect before the next read")
    func posted() throws {
        for value in UInt8(0)..<10 {
            try harness.client.send(
                WireMessage(
                    id: 3, command: 10, flags: WireMessage.noReply,
                    payload: WireMessage.region(0, offset: 0, count: 1, data: [value])))
        }
        let read = try harness.client.request(9, WireMessage.region(0, offset: 0, count: 1))
        #expect(read.payload.last == 9)
        #expect(device.writes.map(\.bytes) == (UInt8(0)..<10).map { [$0] })
    }

    @Test("REGION_WRITE_MULTI executes its elements in order")
    func multi() throws {
        let answer = try harness.exchange(
            hex(
                """
                0b00 0f00 48000000 00000000 00000000  # number 11, WRITE_MULTI, 72 bytes
                0200000000000000                      # two writes
                1000000000000000 00000000 04000000 01020304 00000000
                1400000000000000 00000000 08000000 05060708 090a0b0c
                """))
        #expect(
            answer
                == hex(
                    """
                    0b00 0f00 18000000 01000000 00000000
                    0200000000000000                      # two done
                    """))
        #expect(
            device.writes == [
                .init(region: 0, offset: 0x10, bytes: [1, 2, 3, 4]),
                .init(region: 0, offset: 0x14, bytes: [5, 6, 7, 8, 9, 10, 11, 12]),
            ])
    }

    @Test("REGION_WRITE_MULTI skips invalid elements and reports the number of valid ones")
    func multiPartly() throws {
        let bad = WireMessage.region(
            0, offset: 0x4000, count: 4, data: [UInt8](repeating: 0, count: 8))
        let tooLong = WireMessage.region(
            0, offset: 0, count: 9, data: [UInt8](repeating: 0, count: 8))
        let good = WireMessage.region(
            0, offset: 8, count: 1, data: [7] + [UInt8](repeating: 0, count: 7))
        let reply = try harness.client.request(
            15, Array(littleEndian: UInt64(3)) + bad + tooLong + good)
        #expect(reply.isError)
        #expect(reply.payload == Array(littleEndian: UInt64(1)))
        #expect(device.writes == [.init(region: 0, offset: 8, bytes: [7])])
    }

    @Test(
        "REGION_WRITE_MULTI with fewer elements than its count executes none",
        arguments: [3, 1 << 32, UInt64.max])
    func multiCount(count: UInt64) throws {
        let element = WireMessage.region(
            0, offset: 8, count: 1, data: [UInt8](repeating: 1, count: 8))
        let reply = try harness.client.request(15, Array(littleEndian: count) + element + element)
        #expect(reply.isError && reply.size == 16)
        #expect(device.writes.isEmpty)
        let short = try harness.client.request(15, [0, 0])
        #expect(short.isError)
    }
}
