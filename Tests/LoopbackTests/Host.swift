// SPDX-License-Identifier: Apache-2.0

import BackendKit
import GuestKit
import Logging
import Platform
import TestKit
import USB

@testable import Loopback

/// A port without a controller, which records the calls of the device.
final class FakePort: USBPort {
    private(set) var completions: [Transfer.ID: Transfer.Completion] = [:]
    private(set) var order: [Transfer.ID] = []
    private(set) var disconnects = 0

    func complete(_ completion: Transfer.Completion) {
        completions[completion.id] = completion
        order.append(completion.id)
    }

    func disconnect() { disconnects += 1 }
    func wake() {}

    /// Whether a transfer was completed more than once.
    var hasDoubles: Bool { Set(order).count != order.count }
}

/// A USB host without a controller, on a simulated clock.
final class LoopbackHost {
    let loop = SimulatedLoop()
    let port = FakePort()
    let device: LoopbackDevice
    /// Lines that an operator sees without `-v`.
    let log: LogRecorder.Lines
    var pieces = 1
    private var nextID: UInt64 = 0
    private var memory: [Transfer.ID: GuestBuffer] = [:]

    init(
        _ specification: String = "loopback", faults: String = "", configuration: UInt16 = 3,
        setting: UInt16 = 1
    ) throws {
        let settings = try LoopbackSettings(DeviceSpecification(parsing: specification))
        let (logger, lines) = LogRecorder.make(level: .info)
        log = lines
        device = LoopbackDevice(settings, loop: loop, logger: logger)
        device.attach(to: port)
        control(0, 9, value: configuration)
        if configuration == 3 { control(1, 11, value: setting) }
        device.setFaults(try FaultScript.parse(faults))
    }

    @discardableResult
    func submit(
        _ endpoint: EndpointAddress, _ kind: Transfer.Kind, count: Int, bytes: [UInt8]? = nil
    ) -> Transfer.ID {
        let id = Transfer.ID(rawValue: nextID)
        nextID += 1
        let guest = GuestBuffer(count, segments: pieces)
        if let bytes { guest.buffer.copy(from: bytes) }
        memory[id] = guest
        device.submit(Transfer(id: id, endpoint: endpoint, kind: kind, buffer: guest.buffer))
        return id
    }

    private func kind(_ pipe: Pipe) -> Transfer.Kind {
        switch pipe {
        case .isoIn, .isoOut: .isochronous
        case .interruptIn, .interruptOut: .interrupt
        default: .bulk(stream: 0)
        }
    }

    @discardableResult
    func receive(_ count: Int) -> Transfer.ID { receive(.bulkIn, count) }

    @discardableResult
    func receive(_ pipe: Pipe, _ count: Int) -> Transfer.ID {
        submit(pipe.address, kind(pipe), count: count)
    }

    @discardableResult
    func send(_ bytes: [UInt8]) -> Transfer.ID { send(.bulkOut, bytes) }

    @discardableResult
    func send(_ pipe: Pipe, _ bytes: [UInt8]) -> Transfer.ID {
        submit(pipe.address, kind(pipe), count: bytes.count, bytes: bytes)
    }

    /// The status of a completed transfer, with the bytes that it moved.
    func end(_ id: Transfer.ID) -> End? {
        guard let completion = port.completions[id], let guest = memory[id] else { return nil }
        return End(completion.status, guest.buffer.bytes(count: completion.transferred))
    }

    struct End: Equatable {
        var status: Transfer.Status
        var bytes: [UInt8]
        init(_ status: Transfer.Status, _ bytes: [UInt8] = []) {
            self.status = status
            self.bytes = bytes
        }
    }

    func status(_ id: Transfer.ID) -> Transfer.Status? { port.completions[id]?.status }
    func count(_ id: Transfer.ID) -> Int? { port.completions[id]?.transferred }

    /// All bytes of a transfer's memory.
    func allBytes(_ id: Transfer.ID) -> [UInt8] { memory[id]?.buffer.bytes() ?? [] }

    @discardableResult
    func control(
        _ requestType: UInt8, _ request: UInt8, value: UInt16 = 0, index: UInt16 = 0,
        length: UInt16 = 0, data: [UInt8]? = nil
    ) -> Transfer.ID {
        let setup = SetupPacket(
            requestType: requestType, request: request, value: value, index: index,
            length: data.map { UInt16($0.count) } ?? length)
        return submit(
            .control, .control(setup), count: Int(setup.length), bytes: data)
    }

    func descriptor(_ value: UInt16, length: UInt16 = 1024) -> [UInt8] {
        end(control(0x80, 6, value: value, length: length))?.bytes ?? []
    }

    func isHalted(_ pipe: Pipe) -> Bool {
        let status = control(0x82, 0, index: UInt16(pipe.address.rawValue), length: 2)
        return end(status)?.bytes.first == 1
    }

    func clearHalt(_ pipe: Pipe) { control(2, 1, index: UInt16(pipe.address.rawValue)) }
    func setHalt(_ pipe: Pipe) { control(2, 3, index: UInt16(pipe.address.rawValue)) }

    /// Advances the clock, and runs the timers.
    func pass(_ milliseconds: Int) {
        let end = loop.now + .milliseconds(milliseconds)
        while let next = loop.nextDeadline, next <= end {
            loop.advance(to: next)
            _ = loop.turn()
        }
        loop.advance(to: end)
    }
}

/// The pattern mod63, computed byte by byte.
func mod63(_ count: Int, packet: Int) -> [UInt8] { (0..<count).map { UInt8($0 % packet % 63) } }

func zeroes(_ count: Int) -> [UInt8] { Array(repeating: 0, count: count) }

/// Bytes in which each position differs from its neighbours.
func ramp(_ count: Int, from start: Int = 0) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: ($0 + start) &* 7 &+ ($0 + start) >> 8) }
}
