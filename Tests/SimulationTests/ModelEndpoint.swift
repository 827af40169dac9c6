// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import USB

/// The oracle's model of an endpoint or stream: its queued TDs and the position in its data.
final class ModelEndpoint {
    let endpoint: GuestEndpoint
    let address: EndpointAddress
    let device: FaultyDevice
    /// TDs that have not ended, in ring order.
    var queue: [ModelTransfer] = []
    /// The TD that ended last. A short TD may have a second event (xHCI 4.10.1.1).
    var lastEnded: ModelTransfer?
    /// Bytes moved since the device was created; for the control endpoint, IN only.
    var position: UInt64 = 0
    var taken = 0
    var isHalted = false
    private(set) var violations: [String] = []
    /// The TDs that ended last, whose buffers the guest has reused.
    private var reused: [ModelTransfer] = []

    init(_ endpoint: GuestEndpoint, _ address: EndpointAddress, _ device: FaultyDevice) {
        self.endpoint = endpoint
        self.address = address
        self.device = device
        resynchronize()
    }

    var memory: GuestRAM { endpoint.driver.memory }
    var isControl: Bool { address == .control }
    private var stream: UInt16 { UInt16(endpoint.stream) }

    /// The number of TRBs that fit on the ring.
    var room: Int {
        endpoint.ring.capacity - queue.reduce(0) { $0 + $1.trbs.count } - 1
    }

    /// Takes the positions from the device. Nothing may be in flight.
    func resynchronize() {
        position = device.sentCount(address.number, stream: stream)
        taken = device.received(address.number, stream: stream).count
    }

    func fail(_ message: String, _ event: GuestEvent? = nil) {
        let suffix = event.map { " at \($0)" } ?? ""
        let name = stream > 0 ? " stream \(stream)" : ""
        violations.append("endpoint \(endpoint.contextIndex)\(name): \(message)\(suffix)")
    }

    /// Clears the violations once they are collected.
    func clearViolations() { violations = [] }

    // MARK: - Events

    /// Checks a Transfer Event.
    func check(_ event: GuestEvent) {
        switch event.code {
        case .stoppedLengthInvalid where index(of: event) == nil: return
        default: break
        }
        guard let head = queue.first, let index = head.index(of: event) else {
            // Only the second event of a short TD may follow its end.
            if let ended = lastEnded, let index = ended.index(of: event), index > ended.lastIndex,
                ended.trbs[index].flags.contains(.interruptOnCompletion),
                event.code == .shortPacket || event.code == .success
            {
                ended.lastIndex = index
                return
            }
            return fail("an event that no TRB at the head of the ring requests", event)
        }
        lastEnded = nil
        check(event, head, index)
    }

    /// Whether an event names a TRB of the TD at the head or of the last ended TD.
    func mayReport(_ event: GuestEvent) -> Bool {
        index(of: event) != nil || lastEnded?.index(of: event) != nil
    }

    private func index(of event: GuestEvent) -> Int? {
        queue.first.flatMap { $0.index(of: event) }
    }

    private func check(_ event: GuestEvent, _ head: ModelTransfer, _ index: Int) {
        let flags = head.trbs[index].flags
        switch event.code {
        case .success:
            guard flags.contains(.interruptOnCompletion) else {
                return fail("Success of a TRB without IOC", event)
            }
            guard index > head.lastIndex else { return fail("an event out of order", event) }
            head.lastIndex = index
            if event.isEventData, event.length != head.requested {
                return fail("event data of \(event.length) instead of \(head.requested)", event)
            }
            if !event.isEventData, event.length != 0 {
                return fail("Success with a residue", event)
            }
            if index == head.trbs.count - 1, head.pendingParts.isEmpty {
                end(head, head.shortDataStage ?? head.requested)
            }
        case .shortPacket:
            guard head.isIn else { return fail("Short Packet of an OUT TD", event) }
            guard
                flags.contains(.interruptOnShortPacket) || flags.contains(.interruptOnCompletion)
            else { return fail("Short Packet of a TRB without ISP or IOC", event) }
            guard index > head.lastIndex else { return fail("an event out of order", event) }
            head.lastIndex = index
            let moved = event.isEventData ? event.length : moved(head, index, event)
            guard moved < head.requested else {
                return fail("Short Packet of a complete TD", event)
            }
            if head.isControl { head.shortDataStage = moved } else { end(head, moved) }
        case .stopped:
            head.progress = moved(head, index, event)
            head.lastIndex = max(head.lastIndex, index - 1)
        case .stoppedLengthInvalid, .stoppedShortPacket:
            head.lastIndex = max(head.lastIndex, index - 1)
        case .stall, .babbleDetected, .usbTransactionError:
            head.progress = moved(head, index, event)
            head.lastIndex = index - 1
            head.failure = event.code
            isHalted = true
            if endpoint.context.state != .halted {
                fail("an error without a halted Endpoint Context", event)
            }
        default:
            fail("an unexpected completion code", event)
        }
    }

    private func moved(_ head: ModelTransfer, _ index: Int, _ event: GuestEvent) -> Int {
        let moved = head.moved(at: index, residue: event.length)
        if moved < head.progress || moved > head.requested {
            fail("\(moved) bytes moved of \(head.requested) after \(head.progress)", event)
        }
        return max(0, min(moved, head.requested))
    }

    // MARK: - Data

    /// Removes the TD at the head, which has ended after `moved` bytes.
    func end(_ transfer: ModelTransfer, _ moved: Int) {
        queue.removeFirst()
        lastEnded = transfer
        check(transfer, moved)
        reuseBuffers(of: transfer)
    }

    private func check(_ transfer: ModelTransfer, _ moved: Int) {
        if transfer.isIn {
            let received = transfer.received(moved, from: memory)
            let expected = (0..<moved).map {
                FaultyDevice.pattern(
                    endpoint: address.number, stream: stream, at: position + UInt64($0))
            }
            if received != expected { fail("\(moved) received bytes differ") }
            if !transfer.isUntouched(beyond: moved, in: memory) {
                fail("the buffer was written beyond \(moved) bytes")
            }
            position += UInt64(moved)
        } else {
            let all = device.received(address.number, stream: stream)
            guard taken + moved <= all.count else {
                return fail("the device received fewer than \(moved) bytes")
            }
            if Array(all[taken..<taken + moved]) != Array(transfer.bytes[..<moved]) {
                fail("\(moved) sent bytes differ")
            }
            taken += moved
        }
    }

    /// Removes the TD at the head, which the driver skips.
    func skipHead() {
        guard let head = queue.first else { return }
        queue.removeFirst()
        lastEnded = nil
        if !head.isControl { check(head, head.progress) }
        reuseBuffers(of: head)
        compareWithDevice(tolerating: head.isControl)
    }

    // MARK: - Reused memory

    private func reuseBuffers(of transfer: ModelTransfer) {
        transfer.reuseBuffers(in: memory)
        reused.append(transfer)
        if reused.count > 32 { reused.removeFirst() }
    }

    /// Reuses the memory of all queued TDs, after a reset.
    func reuseAllBuffers() {
        for transfer in queue { reuseBuffers(of: transfer) }
        queue = []
    }

    /// Reports memory that changed after its TD had ended.
    func checkReusedBuffers() {
        if !reused.allSatisfy({ $0.areReusedBuffersIntact(in: memory) }) {
            fail("memory changed after its TD had ended")
            reused = []
        }
    }

    /// Checks the endpoint when nothing is in flight or queued.
    func checkIdle() {
        if !queue.isEmpty { fail("\(queue.count) TDs never ended") }
        compareWithDevice(tolerating: isControl)
    }

    /// Checks that the events have reported every byte that the device has moved.
    private func compareWithDevice(tolerating isTolerant: Bool) {
        let reported = address.direction == .in ? position : UInt64(taken)
        resynchronize()
        let moved = address.direction == .in ? position : UInt64(taken)
        if reported != moved, !isTolerant {
            fail("events reported \(reported) bytes, the device moved \(moved)")
        }
    }
}
