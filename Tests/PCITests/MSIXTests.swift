// SPDX-License-Identifier: Apache-2.0

import PCI
import Testing

/// The MSI-X capability, table and Pending Bit Array, and when messages are sent.
struct MSIXTests {
    private let layout = MSIXLayout(
        vectorCount: 8, baseAddressRegister: 2, tableOffset: 0, pendingBitsOffset: 0x1000)
    private let state: Messages

    init() { state = Messages(layout) }

    @Test func `the capability has the table size and both offsets`() {
        var space = ConfigurationSpace()
        let offset = space.addCapability(layout)
        #expect(space.read(UInt8.self, at: offset) == 0x11)
        #expect(space.read(UInt16.self, at: offset + 2) == 7)
        #expect(space.read(UInt32.self, at: offset + 4) == 2)
        #expect(space.read(UInt32.self, at: offset + 8) == 0x1002)
    }

    @Test func `only MSI-X Enable and Function Mask of Message Control can be written`() {
        var space = ConfigurationSpace()
        let offset = space.addCapability(layout)
        space.write(UInt32.max, at: offset)
        #expect(space.read(UInt16.self, at: offset + 2) == 0xc007)
        space.reset()
        #expect(space.read(UInt16.self, at: offset + 2) == 7)
    }

    @Test func `a vector with an eventfd sends at once`() {
        #expect(!state.setConnected(3, true))
        #expect(state.raise(3))
        #expect(!state.isPending(3))
    }

    @Test func `a vector without an eventfd is pending and sends one message when it gets one`() {
        for _ in 0..<3 { #expect(!state.raise(5)) }
        #expect(state.isPending(5))
        #expect(state.bytes(at: 0x1000, count: 8) == [0x20, 0, 0, 0, 0, 0, 0, 0])
        #expect(state.setConnected(5, true))
        #expect(!state.setConnected(5, true), "the message has been sent")
        #expect(state.bytes(at: 0x1000, count: 1) == [0])
    }

    @Test func `a masked vector is pending until it is unmasked`() {
        #expect(!state.setConnected(0, true))
        #expect(!state.setMasked(0, true))
        #expect(!state.raise(0))
        #expect(!state.setConnected(0, true), "an eventfd does not unmask")
        #expect(state.setMasked(0, false))
        #expect(state.raise(0))
    }

    @Test func `unmasking sends nothing if nothing is pending`() {
        _ = state.setConnected(0, true)
        _ = state.setMasked(0, true)
        #expect(!state.setMasked(0, false))
    }

    @Test func `reset clears Pending bits and masks and keeps eventfds`() {
        _ = state.setConnected(1, true)
        _ = state.setMasked(1, true)
        _ = state.raise(1)
        state.reset()
        #expect(!state.isPending(1))
        #expect(state.raise(1))
    }

    @Test("vectors that do not exist are ignored", arguments: [-1, 8, 64, Int.max, Int.min])
    func missingVector(vector: Int) {
        #expect(!state.raise(vector))
        #expect(!state.setConnected(vector, true))
        #expect(!state.setMasked(vector, true))
        #expect(!state.isPending(vector))
        #expect(state.bytes(at: 0x1000, count: 8) == Array(repeating: 0, count: 8))
    }

    @Test func `vector 63 has the last Pending bit`() {
        let state = Messages(
            MSIXLayout(
                vectorCount: 64, baseAddressRegister: 2, tableOffset: 0, pendingBitsOffset: 0x1000))
        _ = state.raise(63)
        #expect(state.bytes(at: 0x1000, count: 8) == [0, 0, 0, 0, 0, 0, 0, 0x80])
    }

    @Test func `the table is plain memory whose entries are masked after reset`() {
        #expect(state.bytes(at: 12, count: 4) == [1, 0, 0, 0])
        state.write([1, 2, 3, 4, 5, 6, 7, 8], at: 16)
        #expect(state.bytes(at: 15, count: 10) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0])
        state.reset()
        #expect(state.bytes(at: 16, count: 8) == Array(repeating: 0, count: 8))
    }

    @Test func `memory behind the table is zero, and Pending bits are read-only`() {
        state.write(Array(repeating: 0xff, count: 32), at: 8 * 16 - 4)
        #expect(state.bytes(at: 8 * 16 - 4, count: 8) == [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0])
        state.write([0xff], at: 0x1000)
        #expect(state.bytes(at: 0x1000, count: 1) == [0])
        state.write([0xff], at: Int.max)
        #expect(state.bytes(at: Int.max, count: 1) == [0])
    }
}

/// The state behind a reference, so that an expectation can change it.
private final class Messages {
    private var state: MSIXState

    init(_ layout: MSIXLayout) { state = MSIXState(layout) }

    func raise(_ vector: Int) -> Bool { state.raise(vector) }
    func setConnected(_ vector: Int, _ isConnected: Bool) -> Bool {
        state.setConnected(vector, isConnected)
    }
    func setMasked(_ vector: Int, _ isMasked: Bool) -> Bool { state.setMasked(vector, isMasked) }
    func isPending(_ vector: Int) -> Bool { state.isPending(vector) }
    func reset() { state.reset() }
    func bytes(at offset: Int, count: Int) -> [UInt8] {
        [UInt8](capacity: count) { state.read(at: offset, into: &$0) }
    }
    func write(_ bytes: [UInt8], at offset: Int) { state.write(at: offset, from: bytes.span) }
}
