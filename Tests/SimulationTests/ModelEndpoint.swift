// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import USB

/// An endpoint, or a stream of one, as the oracle knows it: what is queued, and how far its data has come.
final class ModelEndpoint {
    let endpoint: GuestEndpoint
    let address: EndpointAddress
    let device: FaultyDevice
    /// TDs without an end, in ring order.
    var queue: [ModelTransfer] = []
    /// The TD that ended last; the specification lets a short TD have a second event.
    var lastEnded: ModelTransfer?
    /// Bytes moved since the device was made, by direction for the control endpoint.
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

    /// TRBs that still fit on the ring.
    var room: Int {
        endpoint.ring.capacity - queue.reduce(0) { $0 + $1.trbs.count } - 1
    }

    /// Takes the device's word for how far the data has come; only when nothing is in flight.
    func resynchronize() {
        position = device.givenCount(address.number, stream: stream)
        taken = device.taken(address.number, stream: stream).count
    }

    func fail(_ what: String, _ event: GuestEvent? = nil) {
        let about = event.map { " at \($0)" } ?? ""
        let place = stream > 0 ? " stream \(stream)" : ""
        violations.append("endpoint \(endpoint.contextIndex)\(place): \(what)\(about)")
    }

    /// Whoever reads the violations forgets them here.
    func forgetViolations() { violations = [] }

    // MARK: - Events

    /// Judges a Transfer Event.
    func judge(_ event: GuestEvent) {
        switch event.code {
        case .stoppedLengthInvalid where place(of: event) == nil: return
        default: break
        }
        guard let head = queue.first, let place = head.place(of: event) else {
            // Only the second event of a short TD may come after its end.
            if let ended = lastEnded, let place = ended.place(of: event), place > ended.lastPlace,
                ended.trbs[place].flags.contains(.interruptOnCompletion),
                event.code == .shortPacket || event.code == .success
            {
                ended.lastPlace = place
                return
            }
            return fail("an event that no TRB at the head of the ring asks for", event)
        }
        lastEnded = nil
        judge(event, head, place)
    }

    /// Whether an event names a TRB of a TD that may have one.
    func mayTell(_ event: GuestEvent) -> Bool {
        place(of: event) != nil || lastEnded?.place(of: event) != nil
    }

    private func place(of event: GuestEvent) -> Int? {
        queue.first.flatMap { $0.place(of: event) }
    }

    private func judge(_ event: GuestEvent, _ head: ModelTransfer, _ place: Int) {
        let flags = head.trbs[place].flags
        switch event.code {
        case .success:
            guard flags.contains(.interruptOnCompletion) else {
                return fail("success of a TRB without the flag", event)
            }
            guard place > head.lastPlace else { return fail("an event out of order", event) }
            head.lastPlace = place
            if event.isEventData, event.length != head.requested {
                return fail("event data of \(event.length) instead of \(head.requested)", event)
            }
            if !event.isEventData, event.length != 0 { return fail("success with residue", event) }
            if place == head.trbs.count - 1, head.rest.isEmpty {
                end(head, head.shortDataStage ?? head.requested)
            }
        case .shortPacket:
            guard head.isIn else { return fail("a short packet that goes out", event) }
            guard
                flags.contains(.interruptOnShortPacket) || flags.contains(.interruptOnCompletion)
            else { return fail("a short packet without the flag", event) }
            guard place > head.lastPlace else { return fail("an event out of order", event) }
            head.lastPlace = place
            let moved = event.isEventData ? event.length : moved(head, place, event)
            guard moved < head.requested else { return fail("a short packet of all bytes", event) }
            if head.isControl { head.shortDataStage = moved } else { end(head, moved) }
        case .stopped:
            head.progress = moved(head, place, event)
            head.lastPlace = max(head.lastPlace, place - 1)
        case .stoppedLengthInvalid, .stoppedShortPacket:
            head.lastPlace = max(head.lastPlace, place - 1)
        case .stall, .babbleDetected, .usbTransactionError:
            head.progress = moved(head, place, event)
            head.lastPlace = place - 1
            head.failure = event.code
            isHalted = true
            if endpoint.context.state != .halted {
                fail("an error without a halted context", event)
            }
        default:
            fail("an unexpected code", event)
        }
    }

    private func moved(_ head: ModelTransfer, _ place: Int, _ event: GuestEvent) -> Int {
        let moved = head.moved(at: place, residue: event.length)
        if moved < head.progress || moved > head.requested {
            fail("\(moved) bytes moved of \(head.requested) after \(head.progress)", event)
        }
        return max(0, min(moved, head.requested))
    }

    // MARK: - Data

    /// The TD is over with so many bytes moved.
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
            if received != expected { fail("\(moved) bytes arrived that differ") }
            if !transfer.isUntouched(behind: moved, in: memory) {
                fail("the buffer was written behind \(moved) bytes")
            }
            position += UInt64(moved)
        } else {
            let all = device.taken(address.number, stream: stream)
            guard taken + moved <= all.count else {
                return fail("\(moved) bytes were not all taken")
            }
            if Array(all[taken..<taken + moved]) != Array(transfer.bytes[..<moved]) {
                fail("\(moved) bytes were sent that differ")
            }
            taken += moved
        }
    }

    /// The driver gives the TD at the head up.
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

    /// The guest uses the memory of all queued TDs for something else, after a reset.
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

    /// What must hold when nothing is in flight and nothing queued.
    func checkIdle() {
        if !queue.isEmpty { fail("\(queue.count) TDs never ended") }
        compareWithDevice(tolerating: isControl)
    }

    /// The events must have told of every byte that the device moved.
    private func compareWithDevice(tolerating isTolerant: Bool) {
        let told = address.direction == .in ? position : UInt64(taken)
        resynchronize()
        let moved = address.direction == .in ? position : UInt64(taken)
        if told != moved, !isTolerant {
            fail("events told of \(told) bytes, the device moved \(moved)")
        }
    }
}
