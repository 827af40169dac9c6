// SPDX-License-Identifier: Apache-2.0

import TestKit
import Testing
import VFIOClient

@testable import VFIOUser

@Suite("DMA_MAP and DMA_UNMAP")
struct MemoryTests {
    let harness: Harness
    var device: TestDevice { harness.device }

    init() throws { harness = try Harness.ready() }

    private func map(
        flags: UInt32 = 3, offset: UInt64 = 0, address: UInt64, size: UInt64,
        descriptors: [CInt] = []
    ) throws -> UInt32 {
        let reply = try harness.client.request(
            2, WireMessage.dmaMap(flags: flags, offset: offset, address: address, size: size),
            descriptors: descriptors)
        #expect(reply.size == 16)
        return reply.error
    }

    private func unmap(flags: UInt32 = 0, address: UInt64, size: UInt64) throws -> UInt32 {
        let reply = try harness.client.request(
            3, WireMessage.dmaUnmap(flags: flags, address: address, size: size))
        // The client of rust-vmm reads 40 bytes, even of an error.
        #expect(reply.size == 40)
        #expect(reply.payload.integer(UInt64.self, at: 8) == address)
        #expect(reply.payload.integer(UInt64.self, at: 16) == size)
        #expect(reply.isError == (reply.error != 0))
        return reply.error
    }

    @Test("memory with a descriptor is mapped")
    func withDescriptor() throws {
        let memory = try SharedMemory(size: 8192)
        try harness.client.send(
            hex(
                """
                0100 0200 30000000 00000000 00000000  # number 1, DMA_MAP, 48 bytes
                20000000 03000000                     # argsz 32, readable and writable
                0010000000000000                      # offset 0x1000 in the file
                0000004001000000 0010000000000000     # at 5 GiB, 4096 bytes
                """), descriptors: [memory.descriptor])
        try harness.runUntilIdle()
        #expect(
            try harness.client.receiveSome(99) == hex("0100 0200 10000000 01000000 00000000"))
        #expect(
            device.maps == [
                .init(address: 0x1_4000_0000, count: 0x1000, offset: 0x1000, hasFile: true)
            ])
    }

    @Test("memory without a descriptor is mapped as such, and read-only memory as read-only")
    func withoutDescriptor() throws {
        #expect(try map(flags: 1, address: 0xf0000, size: 0x10000) == 0)
        #expect(
            device.maps == [.init(address: 0xf0000, count: 0x10000, access: .read, hasFile: false)])
    }

    @Test("the device's refusal is reported to the client")
    func refused() throws {
        #expect(try map(address: 0x1000, size: 0x1000) == 0)
        #expect(try map(address: 0x1fff, size: 1) == 17)  // EEXIST
    }

    @Test("an empty range and one that wraps around are refused")
    func impossible() throws {
        #expect(try map(address: 0x1000, size: 0) == 22)
        #expect(try map(address: .max, size: 2) == 22)
        #expect(try map(address: 1 << 63, size: .max) == 22)
        #expect(device.maps.isEmpty)
        #expect(try map(address: .max, size: 1) == 0)
    }

    @Test(
        "memory that is neither readable nor writable is refused", arguments: [0, 4, 0xffff_fffc])
    func noAccess(flags: UInt32) throws {
        #expect(try map(flags: flags, address: 0x1000, size: 0x1000) == 22)
    }

    @Test("memory with two descriptors is refused, and both are closed")
    func twoDescriptors() throws {
        let detector = try TestPipe()
        #expect(
            try map(
                address: 0x1000, size: 0x1000,
                descriptors: [detector.writeNumber, detector.writeNumber])
                == 22)
        #expect(device.maps.isEmpty)
        #expect(try detector.areCopiesClosed())
    }

    @Test("the descriptor of refused memory is closed")
    func refusedDescriptor() throws {
        let detector = try TestPipe()
        #expect(try map(address: 0x1000, size: 0x1000) == 0)
        #expect(try map(address: 0x1000, size: 0x1000, descriptors: [detector.writeNumber]) == 17)
        #expect(try detector.areCopiesClosed())
    }

    @Test("a short message is refused")
    func tooShort() throws {
        let map = try harness.client.request(2, [UInt8](repeating: 1, count: 31))
        #expect(map.isError && map.error == 22)
        let unmap = try harness.client.request(3, [UInt8](repeating: 1, count: 23))
        #expect(unmap.isError && unmap.error == 22)
    }

    @Test("memory is unmapped")
    func remove() throws {
        #expect(try map(address: 0x1000, size: 0x1000) == 0)
        let answer = try harness.exchange(
            hex(
                """
                0200 0300 28000000 00000000 00000000  # number 2, DMA_UNMAP, 40 bytes
                18000000 00000000                     # argsz 24
                0010000000000000 0010000000000000
                """))
        #expect(
            answer
                == hex(
                    """
                    0200 0300 28000000 01000000 00000000
                    18000000 00000000
                    0010000000000000 0010000000000000
                    """))
        #expect(device.maps.isEmpty)
    }

    @Test("only an exactly mapped range is unmapped")
    func exact() throws {
        #expect(try map(address: 0x1000, size: 0x2000) == 0)
        #expect(try unmap(address: 0x1000, size: 0x1000) == 2)  // ENOENT
        #expect(try unmap(address: 0x2000, size: 0x1000) == 2)
        #expect(try unmap(address: 0, size: 0) == 2)
        #expect(device.maps.count == 1)
        #expect(try unmap(address: 0x1000, size: 0x2000) == 0)
        #expect(try unmap(address: 0x1000, size: 0x2000) == 2)
    }

    @Test("the ALL flag unmaps all memory, and only without a range")
    func all() throws {
        #expect(try map(address: 0x1000, size: 0x1000) == 0)
        #expect(try map(address: 0x4000, size: 0x1000) == 0)
        #expect(try unmap(flags: 2, address: 0, size: 1) == 22)
        #expect(try unmap(flags: 2, address: 0x1000, size: 0) == 22)
        #expect(device.maps.count == 2)
        #expect(try unmap(flags: 2, address: 0, size: 0) == 0)
        #expect(device.maps.isEmpty)
        #expect(try unmap(flags: 2, address: 0, size: 0) == 0)
    }

    @Test("the dirty bitmap and unknown flags are refused")
    func unmapFlags() throws {
        #expect(try map(address: 0x1000, size: 0x1000) == 0)
        #expect(try unmap(flags: 1, address: 0x1000, size: 0x1000) == 95)
        #expect(try unmap(flags: 3, address: 0, size: 0) == 22)
        #expect(try unmap(flags: 4, address: 0x1000, size: 0x1000) == 22)
        #expect(device.maps.count == 1)
    }
}
