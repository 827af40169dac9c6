// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing

@testable import XHCI

/// The order of accesses that hands a TRB over (xHCI 4.9.2).
struct TRBAccessTests {
    private let ram: GuestRAM
    private let memory = GuestMemory()
    private let trb = TRB(
        parameter: 0x0102_0304_0506_0708, status: 0x090a_0b0c, control: 0x0403_0201)

    init() throws { ram = try GuestRAM(size: 1 << 16) }

    private func map(at base: GuestAddress, writable: Bool = true) throws {
        try memory.map(ram.descriptor(), offset: 0, count: 0x1000, at: base, writable: writable)
    }

    @Test func `a TRB is little-endian: parameter, status, control`() throws {
        try map(at: ram.base)
        try memory.storeTRB(trb, at: ram.base + 0x20)
        let bytes: [UInt8] = [8, 7, 6, 5, 4, 3, 2, 1, 12, 11, 10, 9, 1, 2, 3, 4]
        #expect(ram.bytes(at: ram.base + 0x20, count: 16) == bytes)
        ram.write(bytes, at: ram.base + 0x40)
        #expect(try memory.loadTRB(at: ram.base + 0x40, cycle: true) == trb)
    }

    @Test func `a TRB with the other cycle bit is the producer's`() throws {
        try map(at: ram.base)
        try memory.storeTRB(trb, at: ram.base)
        #expect(try memory.loadTRB(at: ram.base, cycle: false) == nil)
    }

    @Test(arguments: [1, 2, 3])
    func `a TRB at an address that is not a multiple of four is refused`(offset: Int) throws {
        try map(at: ram.base)
        #expect(throws: DMAError.self) {
            try memory.loadTRB(at: ram.base + offset, cycle: true)
        }
        #expect(throws: DMAError.self) { try memory.storeTRB(trb, at: ram.base + offset) }
    }

    @Test func `a TRB may end in another region`() throws {
        try map(at: ram.base)
        try map(at: ram.base + 0x1000)
        try memory.storeTRB(trb, at: ram.base + 0xff8)
        #expect(try memory.loadTRB(at: ram.base + 0xff8, cycle: true) == trb)
    }

    @Test func `a TRB is not stored into read-only memory`() throws {
        try map(at: ram.base, writable: false)
        #expect(throws: DMAError.self) { try memory.storeTRB(trb, at: ram.base) }
    }

    @Test(arguments: [1, 2, 3])
    func `a TRB is whole in a region that begins at an odd address`(odd: Int) throws {
        try map(at: ram.base + odd)
        try memory.storeTRB(trb, at: ram.base + 0x10)
        #expect(try memory.loadTRB(at: ram.base + 0x10, cycle: true) == trb)
        #expect(ram.load(UInt64.self, at: ram.base + (0x10 - odd)) == trb.parameter)
    }

    @Test func `by messages, the control word is stored last and loaded first`() throws {
        let remote = RemoteRAM(ram)
        memory.remote = remote
        try memory.mapRemote(count: 0x1000, at: ram.base, writable: true)
        var accesses: [RemoteRAM.Access] = []
        remote.onAccess = { accesses.append($0) }
        let address = ram.base + 0x10

        try memory.storeTRB(trb, at: address)
        #expect(accesses.map(\.address) == [address, address + 8, address + 12])

        accesses = []
        #expect(try memory.loadTRB(at: address, cycle: true) == trb)
        #expect(accesses.map(\.address) == [address + 12, address, address + 8])
    }

    @Test func `by messages, only the control word of a producer's TRB is loaded`() throws {
        let remote = RemoteRAM(ram)
        memory.remote = remote
        try memory.mapRemote(count: 0x1000, at: ram.base, writable: true)
        try memory.storeTRB(trb, at: ram.base)
        var accesses: [RemoteRAM.Access] = []
        remote.onAccess = { accesses.append($0) }
        #expect(try memory.loadTRB(at: ram.base, cycle: false) == nil)
        #expect(accesses.map(\.address) == [ram.base + 12])
    }
}
