// SPDX-License-Identifier: Apache-2.0

import Platform
import SystemPackage
import VFIOUser

/// A device that records the requests it receives.
final class TestDevice: VFIODevice {
    struct Write: Equatable {
        let region: Int
        let offset: Int
        let bytes: [UInt8]
    }

    struct Change: Equatable {
        let index: Int
        let vector: Int
        let action: InterruptAction
    }

    struct Map: Equatable {
        var address: UInt64
        var count: UInt64
        var offset: UInt64 = 0
        var access: MemoryAccess = [.read, .write]
        var hasFile = true
    }

    let regions: [RegionDescription]
    let interrupts: [InterruptDescription]
    /// The bytes of each region.
    var contents: [[UInt8]]
    var writes: [Write] = []
    var changes: [Change] = []
    /// The eventfds of the connected vectors, by interrupt type and vector.
    var events: [[EventDescriptor?]]
    var maps: [Map] = []
    var resets = 0
    /// Called during a register read.
    var whileReading: (() -> Void)?

    static let registers = 0, writeOnly = 2, readOnly = 4
    static let vectors = 20

    init() {
        var regions = [RegionDescription](
            repeating: .absent, count: RegionDescription.PCI.count)
        regions[Self.registers] = RegionDescription(size: 0x4000)
        regions[Self.writeOnly] = RegionDescription(size: 0x1000, isReadable: false)
        regions[Self.readOnly] = RegionDescription(size: 0x1000, isWritable: false)
        regions[RegionDescription.PCI.configuration] = RegionDescription(size: 4096)
        self.regions = regions
        var interrupts = [InterruptDescription](
            repeating: .absent, count: InterruptDescription.PCI.count)
        interrupts[InterruptDescription.PCI.msi] = InterruptDescription(count: 1, flags: .eventFD)
        interrupts[InterruptDescription.PCI.msix] = InterruptDescription(
            count: Self.vectors, flags: [.eventFD, .maskable])
        self.interrupts = interrupts
        contents = regions.map { [UInt8](repeating: 0, count: Int($0.size)) }
        events = interrupts.map { [EventDescriptor?](repeating: nil, count: $0.count) }
        contents[RegionDescription.PCI.configuration].replaceSubrange(
            0..<Self.configuration.count, with: Self.configuration)
    }

    /// A PCI header with 16 KiB of registers and an MSI-X capability, enough for a client to start.
    static let configuration: [UInt8] = {
        var bytes = [UInt8](repeating: 0, count: 64)
        bytes[0x06] = 0x10  // capabilities list
        bytes[0x34] = 0x40
        bytes += [0x11, 0x00, 19, 0x00]  // MSI-X, last, 20 vectors
        bytes += [0x03, 0x00, 0x00, 0x00]  // table in BAR 3 at 0
        bytes += [0x03, 0x10, 0x00, 0x00]  // pending bits in BAR 3 at 0x1000
        return bytes
    }()

    func readRegion(_ index: Int, at offset: Int, into bytes: inout OutputSpan<UInt8>) {
        whileReading?()
        for byte in contents[index][offset..<offset + bytes.freeCapacity] { bytes.append(byte) }
    }

    func writeRegion(_ index: Int, at offset: Int, from bytes: Span<UInt8>) {
        var copy: [UInt8] = []
        for index in bytes.indices { copy.append(bytes[index]) }
        writes.append(Write(region: index, offset: offset, bytes: copy))
        // The base address registers and the ROM are absent, so they are read-only.
        if index == RegionDescription.PCI.configuration, (0x10..<0x34).contains(offset) { return }
        contents[index].replaceSubrange(offset..<offset + copy.count, with: copy)
    }

    func setInterrupt(_ index: Int, vector: Int, to event: consuming OwnedDescriptor?) {
        guard let event = event.take() else {
            events[index][vector] = nil
            return
        }
        events[index][vector] = try? EventDescriptor(event)
    }

    func changeInterrupt(_ index: Int, vector: Int, _ action: InterruptAction) {
        changes.append(Change(index: index, vector: vector, action: action))
    }

    func mapMemory(
        _ file: consuming OwnedDescriptor?, offset: UInt64, at address: UInt64, count: UInt64,
        access: MemoryAccess
    ) throws(MemoryMapError) {
        let last = address + (count - 1)
        for map in maps where map.address <= last && address <= map.address + (map.count - 1) {
            throw MemoryMapError(.fileExists, "the range is mapped")
        }
        maps.append(
            Map(
                address: address, count: count, offset: offset, access: access,
                hasFile: file.take() != nil))
    }

    func unmapMemory(at address: UInt64, count: UInt64) throws(Errno) {
        guard let index = maps.firstIndex(where: { $0.address == address && $0.count == count })
        else { throw .noSuchFileOrDirectory }
        maps.remove(at: index)
    }

    func unmapAllMemory() { maps = [] }

    func reset() { resets += 1 }
}
