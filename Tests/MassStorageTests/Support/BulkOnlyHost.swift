// SPDX-License-Identifier: Apache-2.0

import GuestKit
import Logging
import Platform
import TestKit
import USB

@testable import MassStorage

/// A USB host without a controller: submits transfers to a device, waits for their completions, and
/// runs commands of Bulk-Only Transport.
final class BulkOnlyHost {
    let loop: EpollLoop
    let port = FakePort()
    let device: MassStorageDevice
    private var nextID: UInt64 = 0
    private var nextTag: UInt32 = 0x1000
    private var memory: [Transfer.ID: GuestBuffer] = [:]
    private var transfers: [Transfer.ID: Transfer] = [:]
    /// Segments of the memory of each transfer.
    var segments = 1

    init(
        _ image: any DiskImage, speed: USBSpeed = .superSpeed, offersUAS: Bool = false,
        writeCache: Bool = true,
        identity: InquiryIdentity = .init(serialNumber: "0123456789ABCDEF")
    ) throws {
        loop = try EpollLoop()
        let unit = LogicalUnit(
            identity: identity, blockCount: image.byteCount / UInt64(blockSize),
            isReadOnly: image.isReadOnly, writeCache: writeCache)
        device = MassStorageDevice(
            image: image, unit: unit, speed: speed, offersUAS: offersUAS, summary: "test",
            worker: try Worker(name: "test", loop: loop), logger: .silent)
        device.attach(to: port)
        setConfiguration(1)
    }

    // MARK: - Transfers

    @discardableResult
    func submit(
        _ endpoint: EndpointAddress, _ kind: Transfer.Kind, count: Int, bytes: [UInt8]? = nil
    ) -> Transfer.ID {
        let id = Transfer.ID(rawValue: nextID)
        nextID += 1
        let guest = GuestBuffer(count, segments: segments)
        if let bytes { guest.buffer.copy(from: bytes) }
        memory[id] = guest
        let transfer = Transfer(id: id, endpoint: endpoint, kind: kind, buffer: guest.buffer)
        transfers[id] = transfer
        device.submit(transfer)
        return id
    }

    func submitOut(_ bytes: [UInt8]) -> Transfer.ID {
        submit(
            MassStorageDescriptors.outEndpoint, .bulk(stream: 0), count: bytes.count, bytes: bytes)
    }

    func submitIn(_ count: Int) -> Transfer.ID {
        submit(MassStorageDescriptors.inEndpoint, .bulk(stream: 0), count: count)
    }

    func isDone(_ id: Transfer.ID) -> Bool { port.completions[id] != nil }

    /// Waits for the completion of a transfer; `nil` if the worker is idle without one.
    func wait(_ id: Transfer.ID) -> Transfer.Completion? {
        let deadline = loop.now + .seconds(60)
        while port.completions[id] == nil, loop.now < deadline {
            try? loop.turn(until: loop.now + .milliseconds(5))
            if device.isIdle && port.completions[id] == nil { return nil }
        }
        return port.completions[id]
    }

    func bytes(_ id: Transfer.ID) -> [UInt8] {
        guard let completion = port.completions[id], let transfer = transfers[id] else { return [] }
        return transfer.buffer.bytes(count: completion.transferred)
    }

    /// Writes other data into the memory of a transfer, as a guest that reuses it.
    func reuseMemory(of id: Transfer.ID) { memory[id]?.buffer.fill(.max, with: Self.reused) }

    /// Whether the memory still holds the data that ``reuseMemory(of:)`` has written.
    func isMemoryIntact(of id: Transfer.ID) -> Bool {
        memory[id]?.buffer.bytes().allSatisfy { $0 == Self.reused } ?? false
    }

    private static let reused: UInt8 = 0xee

    /// Whether the device has written the first `count` bytes of a transfer's memory.
    func arrived(_ id: Transfer.ID, _ count: Int) -> Bool {
        memory[id]?.buffer.bytes(from: count - 1, count: 1) != [0xa5]
    }

    /// Runs the handlers that are due on the event loop.
    func turn() { try? loop.turn(until: loop.now + .milliseconds(5)) }

    func waitUntilIdle() {
        while !device.isIdle { try? loop.turn(until: loop.now + .milliseconds(5)) }
    }

    // MARK: - Control

    @discardableResult
    func control(
        _ requestType: UInt8, _ request: UInt8, value: UInt16 = 0, index: UInt16 = 0,
        length: UInt16 = 0
    ) -> (status: Transfer.Status?, bytes: [UInt8]) {
        let setup = SetupPacket(
            requestType: requestType, request: request, value: value, index: index, length: length)
        let id = submit(.control, .control(setup), count: Int(length))
        return (port.completions[id]?.status, bytes(id))
    }

    func setConfiguration(_ value: UInt16) { control(0x00, 9, value: value) }

    func clearHalt(_ endpoint: EndpointAddress) {
        control(0x02, 1, index: UInt16(endpoint.rawValue))
    }

    func isHalted(_ endpoint: EndpointAddress) -> Bool {
        control(0x82, 0, index: UInt16(endpoint.rawValue), length: 2).bytes.first == 1
    }

    @discardableResult
    func resetTransport() -> Transfer.Status? { control(0x21, 0xff).status }

    /// Reset recovery (5.3.4).
    func recover() {
        resetTransport()
        clearHalt(MassStorageDescriptors.inEndpoint)
        clearHalt(MassStorageDescriptors.outEndpoint)
    }

    // MARK: - Commands

    /// The bytes of a CBW.
    func wrapper(
        _ command: [UInt8], length: Int, direction: Direction, tag: UInt32, unit: UInt8 = 0
    ) -> [UInt8] {
        var bytes: [UInt8] = [0x55, 0x53, 0x42, 0x43]
        bytes.append(littleEndian: tag)
        bytes.append(littleEndian: UInt32(length))
        bytes += [direction == .in ? 0x80 : 0, unit, UInt8(command.count)]
        bytes += command + [UInt8](repeating: 0, count: 16 - command.count)
        return bytes
    }

    /// The result of a command.
    struct Result: Equatable {
        var data: [UInt8] = []
        var dataStatus: Transfer.Status?
        /// `bCSWStatus`; `nil` if no valid CSW was received.
        var status: UInt8?
        var residue = 0
        /// The first transfer for the CSW was stalled.
        var statusStalled = false
    }

    /// Runs a command as Linux does: submits one transfer after the other, clears halts, and
    /// fetches the CSW a second time after a stall.
    func run(
        _ command: [UInt8], in count: Int = 0, out data: [UInt8]? = nil, chunk: Int = .max,
        unit: UInt8 = 0
    ) -> Result {
        var result = Result()
        let tag = nextTag
        nextTag += 1
        let length = data?.count ?? count
        let direction: Direction = data == nil && count > 0 ? .in : .out
        let cbw = submitOut(
            wrapper(command, length: length, direction: direction, tag: tag, unit: unit))
        guard wait(cbw)?.status == .completed else { return result }
        if let data {
            var rest = data[...]
            while !rest.isEmpty {
                let part = Array(rest.prefix(chunk))
                rest = rest.dropFirst(part.count)
                let id = submitOut(part)
                let completion = wait(id)
                result.dataStatus = completion?.status
                if completion?.status == .stalled { clearHalt(MassStorageDescriptors.outEndpoint) }
                if completion?.status != .completed { break }
            }
        } else {
            var left = count
            while left > 0 {
                let size = min(left, chunk)
                let id = submitIn(size)
                guard let completion = wait(id) else { break }
                result.data += bytes(id)
                result.dataStatus = completion.status
                left -= size
                if completion.status == .stalled { clearHalt(MassStorageDescriptors.inEndpoint) }
                if completion.status != .completed || completion.transferred < size { break }
            }
        }
        var status = submitIn(13)
        if wait(status)?.status == .stalled {
            result.statusStalled = true
            clearHalt(MassStorageDescriptors.inEndpoint)
            status = submitIn(13)
        }
        let csw = wait(status)?.status == .completed ? bytes(status) : []
        guard csw.count == 13, Array(csw[0..<4]) == [0x55, 0x53, 0x42, 0x53],
            csw.littleEndian(at: 4) == tag
        else { return result }
        result.status = csw[12]
        result.residue = Int(csw.littleEndian(UInt32.self, at: 8))
        return result
    }

    /// Fixed-format sense data.
    func sense() -> (key: UInt8, code: UInt16, bytes: [UInt8]) {
        let bytes = run([0x03, 0, 0, 0, 18, 0], in: 18).data
        guard bytes.count == 18 else { return (0xff, 0xffff, bytes) }
        return (bytes[2] & 0xf, bytes.bigEndian(at: 12), bytes)
    }
}
