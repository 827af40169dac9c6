// SPDX-License-Identifier: Apache-2.0

import BackendKit
import GuestKit
import Logging
import MassStorage
import Platform
import TestKit
import USB

/// A USB host without a controller, and the storage backend that it checks: each transfer completes
/// at most once, with a valid count, in order, and at once when it is cancelled. The memory of a
/// transfer is freed on completion, so that the address sanitizer finds later accesses.
final class MassStorageHost: USBBus, USBPort {
    static let inEndpoint = EndpointAddress(1, .in)
    static let outEndpoint = EndpointAddress(2, .out)
    static let statusEndpoint = EndpointAddress(3, .in)
    static let commandEndpoint = EndpointAddress(4, .out)

    let loop = SimulatedLoop()
    private let backend: StorageBackend
    private(set) var device: (any USBDevice)?
    private var nextID: UInt64 = 1
    /// Transfers without completion, oldest first.
    private(set) var waiting: [Transfer] = []
    private var leases: [Transfer.ID: MemoryLease] = [:]
    private var completions: [Transfer.ID: Transfer.Completion] = [:]
    /// The bytes of completed transfers.
    private var data: [Transfer.ID: [UInt8]] = [:]
    private var violation: String?
    /// The number of streams last set; 0 for none.
    private var streams = 0

    init(_ specification: String) throws {
        backend = try StorageBackend(
            DeviceSpecification(parsing: specification),
            context: BackendContext(loop: loop, logger: .silent))
        try backend.start(on: self)
    }

    func stop() throws {
        try drainWorker()
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
        for lease in leases.values { lease.end() }
        leases = [:]
        waiting = []
        streams = 0
    }

    func complete(_ completion: Transfer.Completion) {
        guard let index = waiting.firstIndex(where: { $0.id == completion.id }) else {
            violation = violation ?? "a completion of no waiting transfer: \(completion)"
            return
        }
        let transfer = waiting.remove(at: index)
        completions[completion.id] = completion
        let bytes = transfer.buffer.bytes(count: completion.transferred)
        data[completion.id] = bytes
        leases.removeValue(forKey: completion.id)?.end()
        if completion.transferred < 0 || completion.transferred > transfer.buffer.count {
            violation = "\(completion) for \(transfer.buffer.count) bytes"
        }
        // Transfers of different streams have no order.
        let isFirst = !waiting[..<index].contains {
            $0.endpoint == transfer.endpoint && $0.stream == transfer.stream
        }
        if completion.status != .cancelled, !isFirst { violation = "out of order: \(completion)" }
        if transfer.endpoint == Self.statusEndpoint, completion.status == .completed {
            check(bytes, of: transfer)
        }
        if completion.status == .disconnected { violation = "the device disconnects" }
    }

    /// Checks the length of an information unit of the status pipe, and that its stream is its tag.
    private func check(_ unit: [UInt8], of transfer: Transfer) {
        let length: Int? =
            switch unit.first {
            case 0x03 where unit.count >= 16: 16 + Int(unit[15])
            case 0x04: 8
            case 0x06, 0x07: 4
            default: nil
            }
        guard let length, unit.count == length else {
            violation = "not an information unit of the status pipe: \(unit)"
            return
        }
        let tag = unit.bigEndian(UInt16.self, at: 2)
        if streams > 0, tag != transfer.stream {
            violation = "the status of tag \(tag) is on stream \(transfer.stream)"
        }
    }

    func disconnect() { violation = "the device disconnects" }

    func wake() { violation = "the device signals remote wakeup" }

    // MARK: - Transfers

    @discardableResult
    func submit(
        _ endpoint: EndpointAddress, _ bytes: [UInt8], as kind: Transfer.Kind = .bulk(stream: 0),
        segments: Int = 1
    ) -> Transfer.ID {
        let id = Transfer.ID(rawValue: nextID)
        nextID += 1
        let lease = HeapSegments.lease(bytes, segments: segments)
        leases[id] = lease
        let transfer = Transfer(id: id, endpoint: endpoint, kind: kind, buffer: lease.buffer)
        waiting.append(transfer)
        device?.submit(transfer)
        return id
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

    /// Reset recovery (Bulk-Only Transport 5.3.4).
    func recover() {
        control(SetupPacket(requestType: 0x21, request: 0xff, value: 0, index: 0, length: 0))
        clearHalt(Self.inEndpoint)
        clearHalt(Self.outEndpoint)
    }

    func setConfiguration(_ value: UInt16) {
        control(SetupPacket(requestType: 0, request: 9, value: value, index: 0, length: 0))
    }

    /// Sets the streams, and selects the alternate setting of UAS.
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
        let id = waiting[index].id
        device?.cancel(id)
        if completions[id] == nil { violation = "a cancelled transfer does not complete" }
    }

    /// Detaches the device and attaches it again.
    func replug() throws {
        guard let device else { return }
        detach(device)
        try drainWorker()
        completions = [:]
        data = [:]
        try attach(device)
    }

    /// Runs the event loop until the worker has no jobs.
    func drainWorker() throws {
        var rounds = 0
        while !backend.isIdle {
            _ = loop.turn(wait: 100)
            rounds += 1
            try require(rounds < 1000, "the worker does not finish")
        }
        try check()
    }

    func check() throws { if let violation { throw Violation(violation) } }

    // MARK: - Commands

    enum Outcome: Equatable {
        case passed, failed, phaseError
        /// There was no valid CSW.
        case invalid
    }

    /// Runs a command as a conforming host does.
    func run(
        _ command: [UInt8], length: Int, _ direction: Direction, fill: UInt8 = 0
    ) throws -> (outcome: Outcome, data: [UInt8]) {
        let tag = UInt32(truncatingIfNeeded: nextID)
        submit(Self.outEndpoint, Self.wrapper(command, length: length, direction, tag: tag))
        try drainWorker()
        var data: [UInt8] = []
        if length > 0 {
            let endpoint = direction == .in ? Self.inEndpoint : Self.outEndpoint
            let transfer = submit(endpoint, [UInt8](repeating: fill, count: length))
            try drainWorker()
            data = self.data[transfer] ?? []
            if completions[transfer]?.status == .stalled { clearHalt(endpoint) }
        }
        var status = submit(Self.inEndpoint, [UInt8](repeating: 0, count: 13))
        try drainWorker()
        if completions[status]?.status == .stalled {
            clearHalt(Self.inEndpoint)
            status = submit(Self.inEndpoint, [UInt8](repeating: 0, count: 13))
            try drainWorker()
        }
        guard completions[status]?.status == .completed, let wrapper = self.data[status] else {
            return (.invalid, data)
        }
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

/// Guest memory in segments that are allocations of their own, so that the address sanitizer knows
/// the bounds of each.
private final class HeapSegments {
    private var segments: [UnsafeMutableRawBufferPointer] = []

    /// A lease that holds the only reference to the memory.
    static func lease(_ bytes: [UInt8], segments count: Int) -> MemoryLease {
        let owner = HeapSegments()
        let lease = MemoryLease()
        let length = max((bytes.count + count - 1) / count, 1)
        for start in stride(from: 0, to: bytes.count, by: length) {
            let part = bytes[start..<min(start + length, bytes.count)]
            let segment = UnsafeMutableRawBufferPointer.allocate(
                byteCount: part.count, alignment: 16)
            segment.copyBytes(from: part)
            owner.segments.append(segment)
            lease.append(segment, keeping: owner)
        }
        return lease
    }

    deinit { for segment in segments { segment.deallocate() } }
}
