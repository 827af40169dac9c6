// SPDX-License-Identifier: Apache-2.0

import BackendKit
import GuestKit
import Logging
import MassStorage
import Platform
import TestKit
import USB

/// A host without a controller and its only stick, which is watched: each transfer is answered at
/// most once, with a count that it has room for, and in order.
final class StickHost: USBBus, USBPort {
    static let inEndpoint = EndpointAddress(1, .in)
    static let outEndpoint = EndpointAddress(2, .out)
    static let statusEndpoint = EndpointAddress(3, .in)
    static let commandEndpoint = EndpointAddress(4, .out)

    let loop = SimulatedLoop()
    private let backend: StorageBackend
    private(set) var device: (any USBDevice)?
    private var nextID: UInt64 = 1
    /// Transfers without an answer, oldest first.
    private(set) var waiting: [Transfer] = []
    private var answers: [Transfer.ID: Transfer.Completion] = [:]
    private var cancelled: Set<Transfer.ID> = []
    private var violation: String?
    /// What the host's controller last said to the device.
    private var streams = 0

    init(_ specification: String) throws {
        backend = try StorageBackend(
            DeviceSpecification(parsing: specification),
            context: BackendContext(
                loop: loop, logger: .silent))
        try backend.start(on: self)
    }

    func stop() throws {
        try settle()
        try backend.stop()
        device = nil
    }

    // MARK: - USBBus, USBPort

    func attach(_ device: any USBDevice) throws(AttachError) {
        self.device = device
        device.attach(to: self)
    }

    func detach(_ device: any USBDevice) {
        device.detached()
        waiting = []
        streams = 0
    }

    func complete(_ completion: Transfer.Completion) {
        guard let place = waiting.firstIndex(where: { $0.id == completion.id }) else {
            violation = violation ?? "an answer nobody waits for: \(completion)"
            return
        }
        let transfer = waiting.remove(at: place)
        answers[completion.id] = completion
        if completion.transferred < 0 || completion.transferred > transfer.buffer.count {
            violation = "\(completion) for \(transfer.buffer.count) bytes"
        }
        // Streams have nothing to do with each other.
        let isFirst = !waiting[..<place].contains {
            $0.endpoint == transfer.endpoint && $0.stream == transfer.stream
        }
        if completion.status != .cancelled, !isFirst { violation = "out of order: \(completion)" }
        if transfer.endpoint == Self.statusEndpoint, completion.status == .completed {
            check(transfer.buffer.bytes(count: completion.transferred), of: transfer)
        }
        if completion.status == .disconnected { violation = "a stick does not disconnect" }
    }

    /// A status unit of UAS has its own length, and comes on the stream that its tag names.
    private func check(_ unit: [UInt8], of transfer: Transfer) {
        let length: Int? =
            switch unit.first {
            case 0x03 where unit.count >= 16: 16 + Int(unit[15])
            case 0x04: 8
            case 0x06, 0x07: 4
            default: nil
            }
        guard let length, unit.count == length else {
            violation = "no status unit: \(unit)"
            return
        }
        let tag = unit.bigEndian(UInt16.self, at: 2)
        if streams > 0, tag != transfer.stream {
            violation = "the status of \(tag) on stream \(transfer.stream)"
        }
    }

    func disconnect() { violation = "a stick does not disconnect" }

    func wake() { violation = "a stick does not wake anybody" }

    // MARK: - Transfers

    @discardableResult
    func submit(
        _ endpoint: EndpointAddress, _ bytes: [UInt8], as kind: Transfer.Kind = .bulk(stream: 0),
        pieces: Int = 1
    ) -> Transfer {
        let transfer = Transfer(
            id: Transfer.ID(rawValue: nextID), endpoint: endpoint, kind: kind,
            buffer: HeapPieces.buffer(bytes, pieces: pieces))
        nextID += 1
        waiting.append(transfer)
        device?.submit(transfer)
        return transfer
    }

    func control(_ setup: SetupPacket) {
        submit(
            .control, [UInt8](repeating: 0, count: Int(setup.length)), as: .control(setup))
    }

    func clearHalt(_ endpoint: EndpointAddress) {
        control(
            SetupPacket(
                requestType: 0x02, request: 1, value: 0, index: UInt16(endpoint.rawValue),
                length: 0))
    }

    /// 5.3.4 of Bulk-Only Transport.
    func recover() {
        control(SetupPacket(requestType: 0x21, request: 0xff, value: 0, index: 0, length: 0))
        clearHalt(Self.inEndpoint)
        clearHalt(Self.outEndpoint)
    }

    func setConfiguration(_ value: UInt16) {
        control(SetupPacket(requestType: 0, request: 9, value: value, index: 0, length: 0))
    }

    /// The setting of UAS, if the stick has one, after the host's controller has made its streams.
    func chooseUAS(streams: Int) {
        self.streams = streams
        for endpoint in [Self.statusEndpoint, Self.inEndpoint, Self.outEndpoint] {
            device?.setStreams(streams, for: endpoint)
        }
        control(SetupPacket(requestType: 1, request: 11, value: 1, index: 0, length: 0))
    }

    func chooseBulkOnly() {
        control(SetupPacket(requestType: 1, request: 11, value: 0, index: 0, length: 0))
    }

    func cancel(_ index: Int) {
        guard waiting.indices.contains(index) else { return }
        device?.cancel(waiting[index].id)
    }

    /// Plugs it out and in again.
    func replug() throws {
        guard let device else { return }
        detach(device)
        try settle()
        answers = [:]
        try attach(device)
    }

    /// Lets the worker end what it has.
    func settle() throws {
        var rounds = 0
        while !backend.isIdle {
            _ = loop.turn(wait: 100)
            rounds += 1
            try require(rounds < 1000, "the worker does not come to an end")
        }
        try check()
    }

    func check() throws { if let violation { throw Violation(violation) } }

    // MARK: - Commands

    enum Outcome: Equatable {
        case passed, failed, phaseError
        /// No CSW could be had.
        case broken
    }

    /// Carries a command out as a host does that keeps to the rules.
    func run(
        _ command: [UInt8], length: Int, _ direction: Direction, fill: UInt8 = 0
    ) throws -> (outcome: Outcome, data: [UInt8]) {
        let tag = UInt32(truncatingIfNeeded: nextID)
        submit(Self.outEndpoint, Self.wrapper(command, length: length, direction, tag: tag))
        try settle()
        var data: [UInt8] = []
        if length > 0 {
            let endpoint = direction == .in ? Self.inEndpoint : Self.outEndpoint
            let transfer = submit(endpoint, [UInt8](repeating: fill, count: length))
            try settle()
            if let answer = answers[transfer.id] {
                data = transfer.buffer.bytes(count: answer.transferred)
                if answer.status == .stalled { clearHalt(endpoint) }
            }
        }
        var status = submit(Self.inEndpoint, [UInt8](repeating: 0, count: 13))
        try settle()
        if answers[status.id]?.status == .stalled {
            clearHalt(Self.inEndpoint)
            status = submit(Self.inEndpoint, [UInt8](repeating: 0, count: 13))
            try settle()
        }
        guard let answer = answers[status.id], answer.status == .completed else {
            return (.broken, data)
        }
        let wrapper = status.buffer.bytes(count: answer.transferred)
        let expected = [0x55, 0x53, 0x42, 0x53] + [UInt8](littleEndian: tag)
        try require(wrapper.count == 13, "a CSW of \(wrapper.count) bytes")
        try require(Array(wrapper[..<8]) == expected, "not the CSW of this command: \(wrapper)")
        let residue = Int(wrapper.littleEndian(UInt32.self, at: 8))
        try require(residue <= length, "a residue of \(residue) of \(length) bytes")
        switch wrapper[12] {
        case 0: return (.passed, data)
        case 1: return (.failed, data)
        case 2: return (.phaseError, data)
        default: throw Violation("a status of \(wrapper[12])")
        }
    }

    static func wrapper(
        _ command: [UInt8], length: Int, _ direction: Direction, tag: UInt32
    ) -> [UInt8] {
        [0x55, 0x53, 0x42, 0x43] + [UInt8](littleEndian: tag)
            + [UInt8](littleEndian: UInt32(length))
            + [direction == .in ? 0x80 : 0, 0, UInt8(command.count)] + command
            + [UInt8](repeating: 0, count: 16 - command.count)
    }
}

/// Memory of a guest in pieces that are allocations of their own, so that the address sanitizer knows
/// where each ends.
private final class HeapPieces {
    private var pieces: [UnsafeMutableRawBufferPointer] = []

    static func buffer(_ bytes: [UInt8], pieces count: Int) -> TransferBuffer {
        let owner = HeapPieces()
        let lease = MemoryLease()
        let length = max((bytes.count + count - 1) / count, 1)
        for start in stride(from: 0, to: bytes.count, by: length) {
            let part = bytes[start..<min(start + length, bytes.count)]
            let piece = UnsafeMutableRawBufferPointer.allocate(
                byteCount: part.count, alignment: 16)
            piece.copyBytes(from: part)
            owner.pieces.append(piece)
            lease.append(piece, keeping: owner)
        }
        return lease.buffer
    }

    deinit { for piece in pieces { piece.deallocate() } }
}
