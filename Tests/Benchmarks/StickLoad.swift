// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit

/// A load of reads or writes of one size on a Bulk-Only stick.
///
/// With a depth of 1 it waits for each of a command's three transfers, as Linux's usb-storage does;
/// otherwise the rings hold the transfers of several commands.
final class StickLoad {
    enum Direction: String, CaseIterable {
        case read
        case write
    }

    /// The number of bytes that are accessed in order, again and again.
    static let span = 32 << 20

    private let stick: GuestStick
    private let loop: InterruptLoop
    let direction: Direction
    let size: Int
    private let slots: [Slot]
    private var offset = 0
    private var tag: UInt32 = 0

    /// The guest memory of one command.
    private struct Slot {
        let command: GuestAddress
        let data: GuestAddress
        let status: GuestAddress
    }

    /// - Parameter depth: commands on the rings at a time.
    init(_ stick: GuestStick, _ direction: Direction, size: Int, depth: Int) throws {
        self.stick = stick
        self.direction = direction
        self.size = size
        loop = try InterruptLoop(stick.driver)
        let memory = stick.driver.memory
        slots = (0..<depth).map { _ in
            Slot(
                command: memory.allocate(31), data: memory.allocate(size, alignment: 4096),
                status: memory.allocate(13))
        }
    }

    private var memory: GuestRAM { stick.driver.memory }

    /// The data buffers, one per slot, in the guest's memory.
    var buffers: [UnsafeMutableRawBufferPointer] {
        slots.map { memory.window(at: $0.data, count: size) }
    }

    private var dataEndpoint: GuestEndpoint { direction == .read ? stick.input : stick.output }

    /// Runs commands. The sample has latencies only with a depth of 1.
    func run(_ amount: Amount, processorTime: () -> Duration) throws -> Sample {
        try Sample.measure(size: size, processorTime: processorTime) { sample, start in
            if slots.count == 1 {
                try runOne(amount, start, &sample)
            } else {
                try runMany(amount, start, &sample)
            }
        }
    }

    private func runOne(
        _ amount: Amount, _ start: ContinuousClock.Instant, _ sample: inout Sample
    ) throws {
        let slot = slots[0]
        while !amount.isReached(sample.commands, since: start) {
            writeCommand(slot)
            stick.output.ring.push(.normal(slot.command, 31, .interruptOnCompletion))
            try loop.finish(stick.output, latencies: &sample.latencies)
            dataEndpoint.ring.push(dataEndpoint.trbs(slot.data, size))
            try loop.finish(dataEndpoint, latencies: &sample.latencies)
            stick.input.ring.push(.normal(slot.status, 13, .interruptOnCompletion))
            try loop.finish(stick.input, latencies: &sample.latencies)
            try checkStatus(slot, tag: tag)
            sample.commands += 1
        }
    }

    private func runMany(
        _ amount: Amount, _ start: ContinuousClock.Instant, _ sample: inout Sample
    ) throws {
        let firstTag = tag + 1
        var enqueued = 0
        func enqueue() {
            let slot = slots[enqueued % slots.count]
            writeCommand(slot)
            // Only the status transfer has an event, which implies the two before it.
            stick.output.ring.push(.normal(slot.command, 31))
            dataEndpoint.ring.push(withoutEvent(dataEndpoint.trbs(slot.data, size)))
            stick.input.ring.push(.normal(slot.status, 13, .interruptOnCompletion))
            enqueued += 1
        }
        func isReached() -> Bool { amount.isReached(enqueued, since: start) }
        while enqueued < slots.count, !isReached() { enqueue() }
        try loop.ring(stick.output)
        try loop.ring(stick.input)
        while sample.commands < enqueued {
            let before = enqueued
            try loop.events { _ in
                try checkStatus(
                    slots[sample.commands % slots.count], tag: firstTag + UInt32(sample.commands))
                sample.commands += 1
                if !isReached() { enqueue() }
            }
            if enqueued > before {
                try loop.ring(stick.output)
                try loop.ring(stick.input)
            }
        }
    }

    private func withoutEvent(_ trbs: [GuestTRB]) -> [GuestTRB] {
        trbs.map { trb in
            var trb = trb
            trb.control &= ~GuestTRB.Flags.interruptOnCompletion.rawValue
            return trb
        }
    }

    private func writeCommand(_ slot: Slot) {
        tag += 1
        let block = offset / 512
        offset = (offset + size) % Self.span
        let start = slot.command
        memory.store(UInt32(0x4342_5355), at: start)
        memory.store(tag, at: start + 4)
        memory.store(UInt32(size), at: start + 8)
        memory.store(UInt32(direction == .read ? 0x80 : 0) | 10 << 16, at: start + 12)
        memory.store(UInt8(direction == .read ? 0x28 : 0x2a), at: start + 15)
        memory.store(UInt8(0), at: start + 16)
        memory.store(UInt32(block).bigEndian, at: start + 17)
        memory.store(UInt8(0), at: start + 21)
        memory.store(UInt16(size / 512).bigEndian, at: start + 22)
        memory.store(UInt8(0), at: start + 24)
    }

    private func checkStatus(_ slot: Slot, tag: UInt32) throws {
        guard memory.load(UInt32.self, at: slot.status + 4) == tag,
            memory.load(UInt8.self, at: slot.status + 12) == 0
        else { throw BenchmarkError("command \(tag) has failed") }
    }
}
