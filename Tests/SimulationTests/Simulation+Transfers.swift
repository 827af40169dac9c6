// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import TestKit
import USB

/// Random TDs of the simulated guest.
extension Simulation {
    func submit(_ endpoint: ModelEndpoint, ringing: Bool) {
        let drawn: ModelTransfer?
        if endpoint.isControl {
            if !endpoint.queue.isEmpty {
                drawn = nil
            } else {
                drawn = random.oneIn(3) ? splitDataStage(endpoint) : control(endpoint)
            }
        } else {
            drawn = normal(endpoint)
        }
        if let drawn { endpoint.queue.append(drawn) }
        if ringing { endpoint.endpoint.ringDoorbell() }
    }

    private func control(_ endpoint: ModelEndpoint) -> ModelTransfer? {
        guard endpoint.room >= 4 else { return nil }
        let length = random.pick([0, 1, 8, 18, 64, 200])
        let isIn = random.oneIn(2) || length == 0
        let packet = SetupPacket(
            requestType: isIn ? 0xc0 : 0x40, request: 9, value: 0, index: 0, length: UInt16(length))
        var trbs: [GuestTRB] = [.setup(packet)]
        var buffers: [GuestAddress?] = [nil]
        let bytes = isIn ? [] : random.bytes(length)
        if length > 0 {
            let buffer = allocate(length, bytes: isIn ? nil : bytes)
            trbs.append(.data(buffer, length, isIn ? .in : .out, .interruptOnShortPacket))
            buffers.append(buffer)
        }
        trbs.append(.status(isIn && length > 0 ? .out : .in, .interruptOnCompletion))
        buffers.append(nil)
        let addresses = endpoint.endpoint.ring.push(trbs)
        return ModelTransfer(
            trbs: trbs, addresses: addresses, lengths: length > 0 ? [0, length, 0] : [0, 0],
            buffers: buffers, bytes: bytes, isIn: isIn, isControl: true)
    }

    /// A control request with a Data Stage of several TDs, of which only the first is enqueued.
    private func splitDataStage(_ endpoint: ModelEndpoint) -> ModelTransfer {
        let length = random.pick([2, 18, 200, 1500])
        let isIn = random.oneIn(2)
        let packet = SetupPacket(
            requestType: isIn ? 0xc0 : 0x40, request: 9, value: 0, index: 0, length: UInt16(length))
        let bytes = isIn ? [] : random.bytes(length)
        var parts = [ModelTransfer.Part(trb: .setup(packet))]
        var done = 0
        while done < length {
            let isFirst = done == 0
            let left = length - done
            let size = parts.count > 4 ? left : random.number(1...(isFirst ? left - 1 : left))
            let buffer = allocate(size, bytes: isIn ? nil : Array(bytes[done..<done + size]))
            var flags = GuestTRB.Flags.interruptOnCompletion
            if random.oneIn(2) { flags.insert(.interruptOnShortPacket) }
            let trb: GuestTRB =
                isFirst || random.oneIn(2)
                ? .data(buffer, size, isIn ? .in : .out, flags) : .normal(buffer, size, flags)
            parts.append(ModelTransfer.Part(trb: trb, length: size, buffer: buffer))
            done += size
        }
        parts.append(ModelTransfer.Part(trb: .status(isIn ? .out : .in, .interruptOnCompletion)))
        let first = Array(parts.prefix(2))
        let transfer = ModelTransfer(
            trbs: [], addresses: [], lengths: [], buffers: [], bytes: bytes, isIn: isIn,
            isControl: true)
        transfer.append(first, at: endpoint.endpoint.ring.push(first.map(\.trb)))
        transfer.pendingParts = Array(parts.dropFirst(2))
        return transfer
    }

    /// Enqueues the next TD of a control request if the last one has ended.
    ///
    /// - Returns: whether it has.
    @discardableResult
    func enqueueNextPart(_ endpoint: ModelEndpoint) -> Bool {
        guard !endpoint.isHalted, let head = endpoint.queue.first, head.wantsMore else {
            return false
        }
        if let moved = head.shortDataStage {
            // FreeBSD omits the Status Stage then and continues with another request.
            if random.oneIn(2) {
                endpoint.end(head, moved)
                return true
            }
            head.pendingParts = Array(head.pendingParts.suffix(1))
        }
        // The last TD may be enqueued together with the Status Stage.
        let count = head.pendingParts.count == 2 && random.oneIn(2) ? 2 : 1
        let parts = Array(head.pendingParts.prefix(count))
        head.pendingParts.removeFirst(count)
        head.append(parts, at: endpoint.endpoint.ring.push(parts.map(\.trb)))
        endpoint.endpoint.ringDoorbell()
        return true
    }

    private func normal(_ endpoint: ModelEndpoint) -> ModelTransfer? {
        let isIn = endpoint.address.direction == .in
        // Events are ordered within one interrupter only.
        let target = endpoint.endpoint.contextIndex % configuration.eventSegments.count
        let parts = random.number(1...min(6, max(1, endpoint.room - 1)))
        guard endpoint.room >= parts + 1 else { return nil }
        let endsWithEventData = random.oneIn(4)
        var trbs: [GuestTRB] = []
        var lengths: [Int] = []
        var buffers: [GuestAddress?] = []
        var bytes: [UInt8] = []
        if random.oneIn(12) {
            trbs = [GuestTRB.noOp(.interruptOnCompletion).interrupter(target)]
            lengths = [0]
            buffers = [nil]
        } else if !isIn, random.oneIn(8) {
            bytes = random.bytes(random.number(0...8))
            trbs = [GuestTRB.immediate(bytes, .interruptOnCompletion).interrupter(target)]
            lengths = [bytes.count]
            buffers = [nil]
        } else {
            for part in 0..<parts {
                let length = random.pick([0, 1, 31, 64, 100, 512, 600])
                let data = isIn ? nil : random.bytes(length)
                let buffer = allocate(length, bytes: data)
                var flags: GuestTRB.Flags =
                    isIn && !endsWithEventData ? .interruptOnShortPacket : []
                let isLast = part == parts - 1
                if !isLast || endsWithEventData { flags.insert(.chain) }
                if isLast && !endsWithEventData { flags.insert(.interruptOnCompletion) }
                if configuration.polls, random.oneIn(5) { flags.insert(.blockEventInterrupt) }
                trbs.append(GuestTRB.normal(buffer, length, flags).interrupter(target))
                lengths.append(length)
                buffers.append(buffer)
                bytes += data ?? []
            }
            if endsWithEventData {
                nextEventData += 1
                trbs.append(
                    GuestTRB.eventData(nextEventData << 48 | 0xed, .interruptOnCompletion)
                        .interrupter(target))
                lengths.append(0)
                buffers.append(nil)
            }
        }
        let addresses = endpoint.endpoint.ring.push(trbs)
        return ModelTransfer(
            trbs: trbs, addresses: addresses, lengths: lengths, buffers: buffers, bytes: bytes,
            isIn: isIn, isControl: false)
    }

    private func allocate(_ count: Int, bytes: [UInt8]?) -> GuestAddress {
        let buffer = machine.memory.allocate(count, alignment: random.pick([1, 4, 64]))
        if let bytes {
            machine.memory.write(bytes, at: buffer)
        } else {
            machine.memory.fill(ModelTransfer.filler, at: buffer, count: count)
        }
        return buffer
    }
}
