// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Foundation
import HostUSB
import Logging
import Platform
import TestKit
import Testing
import USB

/// A real device of this machine, attached by the backend. The test acts as the controller.
///
/// The tests need a machine whose devices they may disturb: the outer guest of the test bed, where
/// USBVFIOD_REAL_DEVICES is set. `VMTests` runs them there.
final class RealDevice: USBBus, USBPort {
    static let areAvailable = ProcessInfo.processInfo.environment["USBVFIOD_REAL_DEVICES"] != nil

    private static let timeout = Duration.seconds(20)

    let loop: EpollLoop
    let log: LogRecorder.Lines
    private let backend: any DeviceBackend
    private var attached: (any USBDevice)?
    private var completions: [UInt64: Transfer.Completion] = [:]
    private(set) var order: [UInt64] = []
    private(set) var disconnections = 0
    private var nextID: UInt64 = 1

    /// Finds the device with these ids in sysfs and passes it through.
    ///
    /// - Parameter isServing: whether the backend starts and stops without blocking the loop.
    init(
        vendor: String, product: String, serial: String? = nil, isServing: Bool = false
    ) throws {
        loop = try EpollLoop()
        let (logger, lines) = LogRecorder.make()
        log = lines
        let path = try #require(Self.path(vendor: vendor, product: product, serial: serial))
        let bus = try #require(Self.line("\(path)/busnum"))
        let address = try #require(Self.line("\(path)/devnum"))
        backend = try BackendCatalog(HostBackend.self).makeBackend(
            "host:bus=\(bus),address=\(address)",
            context: BackendContext(loop: loop, logger: logger, isServing: isServing))
        if isServing {
            try finish { backend.start(on: self, completion: $0) }
        } else {
            try backend.start(on: self)
        }
    }

    func stop() { try? backend.stop() }

    /// Stops without blocking the loop.
    func stopLater() throws { try finish { backend.stop(completion: $0) } }

    /// Begins a call that does not block, and turns the loop until it has completed.
    private func finish(_ begin: (@escaping (BackendError?) -> Void) -> Void) throws {
        var ends: [BackendError?] = []
        begin { ends.append($0) }
        #expect(ends.isEmpty, "it has blocked")
        try turn { !ends.isEmpty }
        #expect(ends.count == 1)
        if let error = ends.first ?? nil { throw error }
    }

    var device: any USBDevice {
        get throws { try #require(attached) }
    }

    // MARK: - Controller

    func attach(_ device: any USBDevice) throws(AttachError) {
        attached = device
        device.attach(to: self)
    }

    func detach(_ device: any USBDevice) {
        attached = nil
        device.detached()
    }

    func complete(_ completion: Transfer.Completion) {
        #expect(completions[completion.id.rawValue] == nil, "completed twice: \(completion)")
        completions[completion.id.rawValue] = completion
        order.append(completion.id.rawValue)
    }

    func disconnect() { disconnections += 1 }
    func wake() {}

    // MARK: - Guest

    /// Starts a transfer and returns its number.
    func start(
        _ endpoint: EndpointAddress, _ kind: Transfer.Kind, _ buffer: TransferBuffer
    ) throws -> UInt64 {
        let id = nextID
        nextID += 1
        try device.submit(
            Transfer(id: .init(rawValue: id), endpoint: endpoint, kind: kind, buffer: buffer))
        return id
    }

    /// Turns the loop until a transfer has ended.
    func end(of id: UInt64) throws -> Transfer.Completion {
        try turn { self.completions[id] != nil }
        return try #require(completions[id])
    }

    func hasEnded(_ id: UInt64) -> Bool { completions[id] != nil }

    /// Turns the loop until a condition holds.
    func turn(within limit: Duration = timeout, until isDone: () -> Bool) throws {
        let deadline = loop.now + limit
        while !isDone() && loop.now < deadline {
            try loop.turn(until: min(deadline, loop.now + .milliseconds(50)))
        }
        #expect(isDone(), "timed out after \(limit); logged: \(log.all)")
    }

    func control(_ setup: SetupPacket, _ data: [UInt8]? = nil) throws -> (
        completion: Transfer.Completion, data: [UInt8]
    ) {
        let bytes = Bytes(data ?? [UInt8](repeating: 0, count: Int(setup.length)))
        let completion = try end(of: start(.control, .control(setup), bytes.buffer))
        return (completion, Array(bytes.content.prefix(completion.transferred)))
    }

    /// The numbers of the first bulk endpoints that a configuration describes.
    func bulkEndpoints(ofConfigurationAt index: UInt16) throws -> (in: UInt8, out: UInt8) {
        let (_, descriptor) = try control(
            SetupPacket(
                requestType: 0x80, request: 6, value: 0x200 + index, index: 0, length: 255))
        var addresses: [UInt8] = []
        var offset = 0
        while offset + 3 < descriptor.count && descriptor[offset] >= 2 {
            if descriptor[offset + 1] == 5 && descriptor[offset + 3] & 3 == 2 {
                addresses.append(descriptor[offset + 2])
            }
            offset += Int(descriptor[offset])
        }
        let first = try #require(addresses.first { $0 & 0x80 != 0 })
        return (first & 0xf, try #require(addresses.first { $0 & 0x80 == 0 }))
    }

    func write(_ data: [UInt8], to number: UInt8) throws -> Transfer.Completion {
        try end(of: start(EndpointAddress(number, .out), .bulk(stream: 0), Bytes(data).buffer))
    }

    func read(_ count: Int, from number: UInt8) throws -> (Transfer.Completion, [UInt8]) {
        let bytes = Bytes([UInt8](repeating: 0, count: count))
        let completion = try end(
            of: start(EndpointAddress(number, .in), .bulk(stream: 0), bytes.buffer))
        return (completion, Array(bytes.content.prefix(completion.transferred)))
    }

    // MARK: - Host

    /// The driver that the host has on an interface, such as `1-1:1.0`.
    static func driver(vendor: String, product: String, interface: String = "1.0") -> String? {
        guard let path = path(vendor: vendor, product: product) else { return nil }
        let link = try? FileManager.default.destinationOfSymbolicLink(
            atPath: "\(path):\(interface)/driver")
        return link.map { ($0 as NSString).lastPathComponent }
    }

    static func path(vendor: String, product: String, serial: String? = nil) -> String? {
        let root = "/sys/bus/usb/devices"
        let names = (try? FileManager.default.contentsOfDirectory(atPath: root)) ?? []
        return names.sorted().map { "\(root)/\($0)" }.first {
            line("\($0)/idVendor") == vendor && line("\($0)/idProduct") == product
                && (serial == nil || line("\($0)/serial") == serial)
        }
    }

    static func line(_ path: String) -> String? {
        (try? String(contentsOfFile: path, encoding: .utf8))?
            .trimmingCharacters(in: .whitespacesAndNewlines)
    }

    static func write(_ text: String, to path: String) throws {
        let file = try FileHandle(forWritingTo: URL(filePath: path))
        try file.write(contentsOf: Data(text.utf8))
        try file.close()
    }
}

/// A USB stick, used by the Bulk-Only Transport.
struct Stick {
    static let ids = (vendor: "46f4", product: "0001")

    let device: RealDevice
    let inNumber: UInt8
    let outNumber: UInt8

    init(isServing: Bool = false) throws {
        device = try RealDevice(
            vendor: Self.ids.vendor, product: Self.ids.product, isServing: isServing)
        (inNumber, outNumber) = try device.bulkEndpoints(ofConfigurationAt: 0)
        let set = try device.control(.setConfiguration(1))
        #expect(set.completion.status == .completed)
    }

    func command(_ block: [UInt8], dataIn: Bool, count: Int) throws {
        var wrapper: [UInt8] = [0x55, 0x53, 0x42, 0x43, 1, 2, 3, 4]
        wrapper += (0..<4).map { UInt8(truncatingIfNeeded: count >> ($0 * 8)) }
        wrapper += [dataIn ? 0x80 : 0, 0, UInt8(block.count)]
        wrapper += block + [UInt8](repeating: 0, count: 16 - block.count)
        let completion = try device.write(wrapper, to: outNumber)
        #expect(completion.status == .completed)
        #expect(completion.transferred == 31)
    }

    /// Reads the status wrapper; 0 is success.
    func status() throws -> UInt8 {
        let (completion, bytes) = try device.read(13, from: inNumber)
        #expect(completion.status == .completed)
        return try #require(bytes.count == 13 ? bytes[12] : nil)
    }

    static func readBlocks(_ block: UInt8, count: Int) -> [UInt8] {
        [0x28, 0, 0, 0, 0, block, 0, UInt8(count >> 8), UInt8(count & 0xff), 0]
    }

    static func writeBlocks(_ block: UInt8, count: Int) -> [UInt8] {
        [0x2a, 0, 0, 0, 0, block, 0, UInt8(count >> 8), UInt8(count & 0xff), 0]
    }
}
