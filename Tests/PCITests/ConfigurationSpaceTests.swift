// SPDX-License-Identifier: Apache-2.0

import PCI
import Testing

/// The configuration space of a function, as a guest and a VMM access it.
struct ConfigurationSpaceTests {
    private var space = ConfigurationSpace(
        PCIHeader(
            classCode: 0x0c_03_30, vendorID: 0x1b36, deviceID: 0x000d, revisionID: 1,
            subsystemVendorID: 0x1af4, subsystemID: 0x1100,
            baseAddressRegisters: [
                BaseAddressRegister(index: 0, width: .bits64, size: 0x4000),
                BaseAddressRegister(index: 2, width: .bits32, size: 0x2000),
            ]))

    @Test func `the header identifies the function`() {
        #expect(space.read(UInt32.self, at: 0) == 0x000d_1b36)
        #expect(space.read(UInt32.self, at: 8) == 0x0c03_3001)
        #expect(space.read(UInt32.self, at: 0x2c) == 0x1100_1af4)
        #expect(space.read(UInt8.self, at: 0x0e) == 0, "Header Type: 00h, one function")
        #expect(space.read(UInt8.self, at: 0x3d) == 0, "no interrupt pin")
    }

    @Test func `ID registers are read-only`() {
        var space = space
        for offset in [0, 8, 0x2c, 0x3d] { space.write(UInt32.max, at: offset) }
        #expect(space.read(UInt32.self, at: 0) == 0x000d_1b36)
        #expect(space.read(UInt32.self, at: 8) == 0x0c03_3001)
        #expect(space.read(UInt32.self, at: 0x2c) == 0x1100_1af4)
    }

    @Test("any width and alignment reads the same bytes", arguments: [1, 2, 3, 4, 7, 8, 64])
    func widths(width: Int) {
        let whole = space.bytes(at: 0, count: 64)
        for offset in 0...(64 - width) {
            #expect(space.bytes(at: offset, count: width) == Array(whole[offset..<offset + width]))
        }
    }

    @Test func `a narrow write changes its bytes only`() {
        var space = space
        space.write(UInt32(0xaabb_c000), at: 0x18)
        space.write(UInt8(0x11), at: 0x1a)
        #expect(space.read(UInt32.self, at: 0x18) == 0xaa11_c000)
        space.write(UInt16(0x2233), at: 0x19)
        #expect(space.read(UInt32.self, at: 0x18) == 0xaa22_2000, "bits below the size stay zero")
    }

    @Test func `the Command register has read-write bits for the features of the function`() {
        var space = space
        space.write(UInt16.max, at: 4)
        #expect(space.read(UInt16.self, at: 4) == 0b101_0100_0110)
        space.write(UInt16(0), at: 4)
        #expect(space.read(UInt16.self, at: 4) == 0)
    }

    @Test func `write-one-to-clear bits are cleared by ones, other bits stay`() {
        var space = ConfigurationSpace()
        space.define(UInt16(0xf00f), at: 0x80, writable: 0x000f, clearable: 0xf000)
        space.write(UInt16(0x5005), at: 0x80)
        #expect(space.read(UInt16.self, at: 0x80) == 0xa005)
        space.write(UInt16(0x0000), at: 0x80)
        #expect(space.read(UInt16.self, at: 0x80) == 0xa000)
    }

    @Test func `a Base Address register that is written with ones reads back its size`() {
        var space = space
        space.write(UInt32.max, at: 0x10)
        space.write(UInt32.max, at: 0x14)
        #expect(space.read(UInt32.self, at: 0x10) == 0xffff_c004, "16 KiB, 64 bits")
        #expect(space.read(UInt32.self, at: 0x14) == 0xffff_ffff)
        space.write(UInt32.max, at: 0x18)
        #expect(space.read(UInt32.self, at: 0x18) == 0xffff_e000, "8 KiB, 32 bits")
    }

    @Test(
        "absent Base Address registers and the expansion ROM register read zero",
        arguments: [0x1c, 0x20, 0x24, 0x30])
    func absent(offset: Int) {
        var space = space
        space.write(UInt32.max, at: offset)
        #expect(space.read(UInt32.self, at: offset) == 0)
    }

    @Test func `an assigned base address is kept until reset`() {
        var space = space
        space.write(UInt64(0x12_3456_4000), at: 0x10)
        #expect(space.read(UInt64.self, at: 0x10) == 0x12_3456_4004)
        space.reset()
        #expect(space.read(UInt64.self, at: 0x10) == 4)
    }

    @Test func `capabilities are linked to a list that ends`() {
        var space = space
        let first = space.addCapability(0x09, size: 5)
        let second = space.addCapability(0x11, size: 12)
        #expect(
            space.read(UInt16.self, at: 6) & 1 << 4 != 0, "Capabilities List in the Status register"
        )
        #expect(Int(space.read(UInt8.self, at: 0x34)) == first)
        #expect(space.read(UInt8.self, at: first) == 0x09)
        #expect(Int(space.read(UInt8.self, at: first + 1)) == second)
        #expect(space.read(UInt16.self, at: second) == 0x0011)
        #expect(first >= 0x40 && second % 4 == 0 && second >= first + 5)
    }

    @Test func `Capabilities List in the Status register is read-only`() {
        var space = space
        _ = space.addCapability(0x11, size: 12)
        space.write(UInt16.max, at: 6)
        #expect(space.read(UInt16.self, at: 6) == 1 << 4)
    }

    @Test func `bytes beyond the space read as ones and ignore writes`() {
        var space = space
        #expect(space.bytes(at: 4094, count: 4) == [0, 0, 0xff, 0xff])
        space.write(UInt32.max, at: 4094)
        space.write(UInt32.max, at: Int.max - 1)
        space.write(UInt32.max, at: -8)
        #expect(space.bytes(at: 4094, count: 4) == [0, 0, 0xff, 0xff])
        #expect(space.bytes(at: Int.max - 1, count: 4) == [0xff, 0xff, 0xff, 0xff])
    }

    @Test func `there are no extended capabilities`() {
        #expect(space.read(UInt32.self, at: 0x100) == 0)
    }
}

extension ConfigurationSpace {
    func bytes(at offset: Int, count: Int) -> [UInt8] {
        [UInt8](capacity: count) { read(at: offset, into: &$0) }
    }

    func read<Value: FixedWidthInteger>(_ type: Value.Type, at offset: Int) -> Value {
        bytes(at: offset, count: Value.bitWidth / 8).reversed().reduce(0) { $0 << 8 | Value($1) }
    }

    mutating func write<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
        let bytes = (0..<Value.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
        write(at: offset, from: bytes.span)
    }
}

extension [UInt8] {
    /// The bytes that `body` appends to a span with room for `capacity`.
    init(capacity: Int, _ body: (inout OutputSpan<UInt8>) -> Void) {
        self.init(unsafeUninitializedCapacity: capacity) { buffer, count in
            var span = OutputSpan(buffer: buffer, initializedCount: 0)
            body(&span)
            count = span.finalize(for: buffer)
        }
    }
}
