// SPDX-License-Identifier: Apache-2.0

import Platform
import SystemPackage
import VFIOUser

/// A device that checks the arguments that the session passes to it, and keeps the first violation.
final class SessionDevice: VFIODevice {
    let regions: [RegionDescription]
    let interrupts: [InterruptDescription]
    var refusesMemory = false
    private(set) var violation: String?
    private var events: [[EventDescriptor?]]
    private var maps: [(address: UInt64, count: UInt64)] = []

    init() {
        var regions = [RegionDescription](
            repeating: .absent, count: RegionDescription.PCI.count)
        regions[0] = RegionDescription(size: 0x4000)
        regions[2] = RegionDescription(size: 0x1000, isReadable: false)
        regions[4] = RegionDescription(size: 0x1000, isWritable: false)
        regions[RegionDescription.PCI.configuration] = RegionDescription(size: 4096)
        self.regions = regions
        var interrupts = [InterruptDescription](
            repeating: .absent, count: InterruptDescription.PCI.count)
        interrupts[InterruptDescription.PCI.msi] = InterruptDescription(count: 1, flags: .eventFD)
        interrupts[InterruptDescription.PCI.msix] = InterruptDescription(
            count: 20, flags: [.eventFD, .maskable])
        self.interrupts = interrupts
        events = interrupts.map { [EventDescriptor?](repeating: nil, count: $0.count) }
    }

    /// Closes the client's eventfds.
    func closeEvents() { events = [] }

    private func expect(_ condition: Bool, _ message: @autoclosure () -> String) {
        if !condition, violation == nil { violation = message() }
    }

    private func expectRegion(_ index: Int, _ offset: Int, _ count: Int, write: Bool) {
        guard regions.indices.contains(index) else {
            return expect(false, "region \(index)")
        }
        let region = regions[index]
        expect(
            write ? region.isWritable : region.isReadable,
            "a \(write ? "write" : "read") of region \(index)")
        expect(
            offset >= 0 && count > 0 && offset <= Int(region.size) - count,
            "\(count) bytes at \(offset) of region \(index)")
    }

    func readRegion(_ index: Int, at offset: Int, into bytes: inout OutputSpan<UInt8>) {
        expectRegion(index, offset, bytes.freeCapacity, write: false)
        // A device may append fewer bytes than the read asks for.
        let count = offset & 1 == 0 ? bytes.freeCapacity : bytes.freeCapacity / 2
        for index in 0..<count { bytes.append(UInt8(truncatingIfNeeded: index)) }
    }

    func writeRegion(_ index: Int, at offset: Int, from bytes: Span<UInt8>) {
        expectRegion(index, offset, bytes.count, write: true)
    }

    private func expectVector(_ index: Int, _ vector: Int) -> Bool {
        let exists =
            interrupts.indices.contains(index) && (0..<interrupts[index].count).contains(vector)
        expect(exists, "vector \(vector) of type \(index)")
        return exists && events.indices.contains(index)
    }

    func setInterrupt(_ index: Int, vector: Int, to event: consuming OwnedDescriptor?) {
        guard expectVector(index, vector) else { return }
        guard let event = event.take() else {
            events[index][vector] = nil
            return
        }
        events[index][vector] = try? EventDescriptor(event)
    }

    func changeInterrupt(_ index: Int, vector: Int, _ action: InterruptAction) {
        _ = expectVector(index, vector)
    }

    func mapMemory(
        _ file: consuming OwnedDescriptor?, offset: UInt64, at address: UInt64, count: UInt64,
        access: MemoryAccess
    ) throws(MemoryMapError) {
        expect(
            count > 0 && !address.addingReportingOverflow(count - 1).overflow && !access.isEmpty,
            "memory of \(count) bytes at \(address)")
        if refusesMemory { throw MemoryMapError(.invalidArgument, "refused") }
        maps.append((address, count))
    }

    func unmapMemory(at address: UInt64, count: UInt64) throws(Errno) {
        guard let index = maps.firstIndex(where: { $0.address == address && $0.count == count })
        else { throw .noSuchFileOrDirectory }
        maps.remove(at: index)
    }

    func unmapAllMemory() { maps = [] }

    func reset() {}
}
