// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import HostUSB

/// The blocks that a device keeps from one transfer to the next.
struct TransferMemoryTests {
    let memory = TransferMemory()

    private func address(_ block: TransferMemory.Block) -> UnsafeMutablePointer<UInt8>? {
        block.bytes.baseAddress
    }

    @Test(arguments: [0, 1, 511, 512, 513, 4096, 65_536, 1_000_000, 1 << 20, (1 << 20) + 1])
    func `a block has at least the requested bytes`(count: Int) throws {
        let block = try memory.block(of: count)
        #expect(block.bytes.count >= count)
        #expect(block.bytes.count < 2 * max(count, 512))
    }

    @Test func `a block is used again for a transfer of about its size`() throws {
        let block = try memory.block(of: 5000)
        memory.recycle(block)
        let other = try memory.block(of: 4096)
        #expect(address(other) != address(block))
        #expect(try address(memory.block(of: 8192)) == address(block))
        #expect(memory.keptBytes == 0)
    }

    @Test func `a block over the limit is not kept`() throws {
        memory.recycle(try memory.block(of: HostUSBLimits.keptTransferBytes))
        #expect(memory.keptBytes == HostUSBLimits.keptTransferBytes)
        memory.recycle(try memory.block(of: HostUSBLimits.keptTransferBytes + 1))
        #expect(memory.keptBytes == HostUSBLimits.keptTransferBytes)
    }

    @Test func `a transfer over the limit gets no memory`() throws {
        #expect(throws: LibUSBError.invalidParameter) {
            try memory.block(of: HostUSBLimits.transferBytes + 1)
        }
    }

    @Test func `the kept bytes are bounded, and blocks of the current size are kept`() throws {
        let count = HostUSBLimits.keptBytesPerDevice / 65_536
        let small = try (0...count).map { _ in try memory.block(of: 65_536) }
        for block in small { memory.recycle(block) }
        #expect(memory.keptBytes == HostUSBLimits.keptBytesPerDevice)
        let large = try (0..<4).map { _ in try memory.block(of: 1 << 20) }
        for block in large { memory.recycle(block) }
        #expect(memory.keptBytes == HostUSBLimits.keptBytesPerDevice)
        let again = try (0..<4).map { _ in try memory.block(of: 1 << 20) }
        #expect(Set(again.map(address)) == Set(large.map(address)))
    }

    @Test func `a closed device keeps no blocks`() throws {
        memory.recycle(try memory.block(of: 512))
        memory.removeAll()
        #expect(memory.keptBytes == 0)
    }
}
