// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// Memory of our own behind a transfer's buffer: immediate data, or what stands in for memory that
/// this process cannot see.
@safe
final class OwnedBytes {
    fileprivate let bytes: UnsafeMutableRawBufferPointer
    private let budget: BounceBudget?

    init(count: Int, of budget: BounceBudget? = nil) {
        unsafe bytes = .allocate(byteCount: count, alignment: 16)
        unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0)
        self.budget = budget
        budget?.used += count
    }

    deinit {
        let count = unsafe bytes.count
        budget?.used -= count
        unsafe bytes.deallocate()
    }

    var buffer: TransferBuffer {
        var result = TransferBuffer()
        unsafe result.append(bytes, keeping: self)
        return result
    }
}

/// How much memory of this process stands in for the guest's, in all transfers together.
final class BounceBudget {
    fileprivate var used = 0

    /// Whether a transfer may have so much more.
    func allows(_ count: Int) -> Bool { used + count <= XHCILimits.bounceBytes }
}

/// The data of a transfer that does not reach guest memory by itself: filled before an OUT transfer,
/// written back after an IN transfer.
final class BounceBuffer {
    private let storage: OwnedBytes
    /// Where in it the data begin.
    private let start: Int
    private var pieces: [(address: GuestAddress, count: Int)] = []

    init(_ storage: OwnedBytes, from start: Int = 0) {
        self.storage = storage
        self.start = start
    }

    fileprivate func append(_ address: GuestAddress, count: Int) {
        pieces.append((address, count))
    }

    fileprivate func fill(_ memory: GuestMemory) throws(DMAError) {
        var offset = start
        for (address, count) in pieces {
            let part = unsafe UnsafeMutableRawBufferPointer(
                rebasing: storage.bytes[offset..<offset + count])
            unsafe try memory.read(into: part, at: address)
            offset += count
        }
    }

    /// Writes the first bytes to where they belong.
    func writeBack(_ transferred: Int, _ memory: GuestMemory) throws(DMAError) {
        var offset = start
        let end = start + transferred
        for (address, count) in pieces where offset < end {
            let length = min(count, end - offset)
            let part = unsafe UnsafeRawBufferPointer(
                rebasing: storage.bytes[offset..<offset + length])
            unsafe try memory.write(part, at: address)
            offset += length
        }
    }

    fileprivate var buffer: TransferBuffer { storage.buffer }
}

extension TransferDescriptor {
    /// The data of all TRBs as a buffer for the device.
    ///
    /// - Throws: if a part of it is not in the guest's memory, or must not be written.
    mutating func makeBuffer(
        _ direction: Direction, _ memory: GuestMemory, _ budget: BounceBudget
    ) throws(DMAError) -> TransferBuffer {
        var buffer = TransferBuffer()
        var isLocal = true
        for index in entries.indices {
            let trb = TransferTRB(entries[index].trb)
            let count = length(ofEntry: index)
            guard trb.hasData, count > 0 else { continue }
            if trb.isImmediateData {
                guard direction == .out else {
                    throw DMAError(.readOnly, at: GuestAddress(trb.parameter), count: count)
                }
                Self.appendImmediate(trb, from: trb.length - count, count: count, to: &buffer)
                continue
            }
            let address = GuestAddress(trb.parameter) + (trb.length - count)
            try memory.forEachSlice(
                at: address, count: count, writable: direction == .in
            ) { slice in
                if let bytes = unsafe slice.bytes {
                    unsafe buffer.append(bytes, keeping: slice.owner)
                } else {
                    isLocal = false
                }
            }
        }
        return isLocal ? buffer : try makeBounce(direction, memory, budget)
    }

    private mutating func makeBounce(
        _ direction: Direction, _ memory: GuestMemory, _ budget: BounceBudget
    ) throws(DMAError) -> TransferBuffer {
        let total = dataCount
        guard budget.allows(total) else {
            throw DMAError(.noBuffer, at: GuestAddress(entries[0].position.address), count: total)
        }
        let bounce = BounceBuffer(OwnedBytes(count: total, of: budget))
        try self.bounce(total, through: bounce, direction, memory)
        return bounce.buffer
    }

    /// Lets the first bytes of all data go through a buffer, which an OUT transfer fills now.
    mutating func bounce(
        _ count: Int, through bounce: BounceBuffer, _ direction: Direction, _ memory: GuestMemory
    ) throws(DMAError) {
        var left = count
        for index in entries.indices where TransferTRB(entries[index].trb).hasData {
            let trb = TransferTRB(entries[index].trb)
            let length = length(ofEntry: index)
            // Immediate data among remote pieces is found where the TRB itself is.
            let base = trb.isImmediateData ? entries[index].position.address : trb.parameter
            bounce.append(GuestAddress(base) + (trb.length - length), count: min(length, left))
            left -= min(length, left)
        }
        if direction == .out { try bounce.fill(memory) } else { self.bounce = bounce }
    }

    /// The data bytes that all TRBs ask for.
    var dataCount: Int {
        var total = 0
        for index in entries.indices where TransferTRB(entries[index].trb).hasData {
            total += length(ofEntry: index)
        }
        return total
    }

    /// IDT: up to eight bytes in the TRB itself (xHCI 4.11.7).
    private static func appendImmediate(
        _ trb: TransferTRB, from offset: Int, count: Int, to buffer: inout TransferBuffer
    ) {
        let storage = OwnedBytes(count: count)
        for index in 0..<count {
            unsafe storage.bytes[index] = UInt8(
                truncatingIfNeeded: trb.parameter >> UInt64((offset + index) * 8))
        }
        unsafe buffer.append(storage.bytes, keeping: storage)
    }

    /// Whether its data lie in a range of guest memory.
    func touches(_ start: GuestAddress, count: UInt64) -> Bool {
        guard count > 0 else { return false }
        let last = start.rawValue.addingReportingOverflow(count - 1)
        let end = last.overflow ? UInt64.max : last.partialValue
        return entries.contains { entry in
            let trb = TransferTRB(entry.trb)
            guard trb.hasData, !trb.isImmediateData, trb.length > 0 else { return false }
            let first = trb.parameter
            return first <= end && first &+ UInt64(trb.length - 1) >= start.rawValue
        }
    }
}
