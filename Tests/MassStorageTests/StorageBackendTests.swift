// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Glibc
import GuestKit
import Logging
import Platform
import TestKit
import Testing
import USB

@testable import MassStorage

/// Device specifications, and the lifetime of the backend.
@Suite struct StorageBackendTests {
    let file: TemporaryFile
    let loop: EpollLoop

    init() throws {
        file = try TemporaryFile(size: 1 << 20)
        loop = try EpollLoop()
    }

    /// A bus with one port.
    final class FakeBus: USBBus {
        let port = FakePort()
        private(set) var device: (any USBDevice)?
        var isFull = false

        func attach(_ device: any USBDevice) throws(AttachError) {
            guard !isFull else { throw .noFreePort(device.speed, count: 8) }
            self.device = device
            device.attach(to: port)
        }

        func detach(_ device: any USBDevice) {
            device.detached()
            self.device = nil
        }
    }

    private func make(_ text: String) throws -> any DeviceBackend {
        try BackendCatalog(StorageBackend.self).makeBackend(
            text, context: BackendContext(loop: loop, logger: .silent))
    }

    private func reason(_ text: String) -> String {
        do {
            _ = try make(text)
            return ""
        } catch {
            return "\(error)"
        }
    }

    /// A control request to the only device of a bus.
    private func descriptor(_ bus: FakeBus, _ value: UInt16) -> [UInt8] {
        let memory = GuestBuffer(255)
        let setup = SetupPacket(
            requestType: 0x80, request: 6, value: value, index: 0, length: 255)
        let id = Transfer.ID(rawValue: UInt64(value))
        bus.device?.submit(
            Transfer(
                id: id, endpoint: .control, kind: .control(setup), buffer: memory.buffer))
        return memory.buffer.bytes(count: bus.port.completions[id]?.transferred ?? 0)
    }

    private func string(_ bus: FakeBus, _ index: UInt16) -> String {
        let bytes = descriptor(bus, 0x0300 | index)
        return String(
            decoding: stride(from: 2, to: bytes.count, by: 2).map { bytes[$0] }, as: UTF8.self)
    }

    @Test func `by default a stick is SuperSpeed and has a derived serial number`() throws {
        let bus = FakeBus()
        let backend = try make("storage:file=\(file.path)")
        try backend.start(on: bus)
        #expect(bus.device?.speed == .superSpeed)
        #expect(bus.device?.summary == "storage \(file.path)")
        #expect(
            descriptor(bus, 0x0100) == [
                18, 1, 0x00, 0x03, 0, 0, 0, 9, 0xf4, 0x46, 0x01, 0x00, 0x00, 0x01, 1, 2, 3, 1,
            ])
        #expect(
            descriptor(bus, 0x0200) == [
                9, 2, 44, 0, 1, 1, 0, 0x80, 13,
                9, 4, 0, 0, 2, 0x08, 0x06, 0x50, 0,
                7, 5, 0x81, 2, 0x00, 0x04, 0, 6, 48, 15, 0, 0, 0,
                7, 5, 0x02, 2, 0x00, 0x04, 0, 6, 48, 15, 0, 0, 0,
            ])
        #expect(descriptor(bus, 0x0f00).count == 22)
        #expect(string(bus, 1) == "usbvfiod")
        let serial = string(bus, 3)
        #expect(serial.count == 16)
        #expect(serial.allSatisfy { "0123456789ABCDEF".contains($0) })
        #expect(serial == SerialNumber.derived(from: file.path))
        try backend.stop()
        #expect(bus.device == nil)
    }

    @Test func `every parameter has its effect`() throws {
        let bus = FakeBus()
        let backend = try make(
            "storage:file=\(file.path),readonly,serial=ABC-123,vendor=ACME,product=Rocket Stick,"
                + "speed=high,removable=off,cache=writethrough")
        try backend.start(on: bus)
        #expect(bus.device?.speed == .high)
        #expect(descriptor(bus, 0x0100)[2...7] == [0x00, 0x02, 0, 0, 0, 64])
        #expect(
            descriptor(bus, 0x0200) == [
                9, 2, 32, 0, 1, 1, 0, 0x80, 50,
                9, 4, 0, 0, 2, 0x08, 0x06, 0x50, 0,
                7, 5, 0x81, 2, 0x00, 0x02, 0,
                7, 5, 0x02, 2, 0x00, 0x02, 0,
            ])
        #expect(descriptor(bus, 0x0600).count == 10)
        #expect(descriptor(bus, 0x0700).count == 32)
        #expect(string(bus, 1) == "ACME")
        #expect(string(bus, 2) == "Rocket Stick")
        #expect(string(bus, 3) == "ABC-123")
        try backend.stop()
    }

    @Test func `errors name the invalid value and the valid ones`() {
        let start = "storage:file=\(file.path)"
        #expect(reason("storage").contains("lacks 'file=PATH'"))
        #expect(reason("storage:file=").contains("needs a value"))
        #expect(reason(start + ",speed=warp").contains("one of: high, super"))
        #expect(reason(start + ",cache=x").contains("one of: writeback, writethrough, none"))
        #expect(reason(start + ",removable=maybe").contains("on or off"))
        #expect(reason(start + ",vendor=ninechars").contains("at most 8 printable"))
        #expect(reason(start + ",vendor=eightchr").isEmpty)
        #expect(reason(start + ",product=Gerät").contains("at most 16 printable"))
        #expect(
            reason(start + ",serial=" + String(repeating: "x", count: 65)).contains("at most 64"))
        #expect(reason(start + ",size=1").contains("'size' is not a parameter"))
        #expect(reason("storage:file=/nowhere/x.img").contains("there is no '/nowhere/x.img'"))
    }

    @Test func `an image in use is refused`() throws {
        let first = try make("storage:file=\(file.path)")
        #expect(reason("storage:file=\(file.path)").contains("in use"))
        withExtendedLifetime(first) {}
        let shared = try TemporaryFile(size: 512)
        let one = try make("storage:file=\(shared.path),readonly")
        #expect(reason("storage:file=\(shared.path),readonly").isEmpty)
        withExtendedLifetime(one) {}
    }

    @Test func `an attach without a free port is refused with a reason`() throws {
        let bus = FakeBus()
        bus.isFull = true
        let backend = try make("storage:file=\(file.path)")
        #expect(throws: BackendError.self) { try backend.start(on: bus) }
        try backend.stop()
    }

    @Test func `serial numbers depend on the path only`() {
        #expect(SerialNumber.derived(from: "") == "CBF29CE484222325")
        #expect(SerialNumber.derived(from: "a") == "AF63DC4C8601EC8C")
        #expect(SerialNumber.derived(from: "/a/b") != SerialNumber.derived(from: "/a/c"))
    }

    @Test func `the serial number is derived from the canonical path`() throws {
        let link = file.path + "-link"
        symlink(file.path, link)
        defer { unlink(link) }
        let bus = FakeBus()
        let backend = try make("storage:file=\(link)")
        try backend.start(on: bus)
        #expect(string(bus, 3) == SerialNumber.derived(from: file.path))
        try backend.stop()
    }
}
