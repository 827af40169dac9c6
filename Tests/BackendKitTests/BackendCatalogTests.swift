// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Logging
import Platform
import Testing
import USB

/// How a program finds a backend by what the operator wrote.
struct BackendCatalogTests {
    private let catalog = BackendCatalog(Disk.self, Host.self)

    private func context() throws -> BackendContext {
        BackendContext(loop: try EpollLoop(), logger: Logger(label: "test"))
    }

    @Test func `the scheme chooses the backend`() throws {
        let backend = try catalog.makeBackend("disk:file=a.img", context: context())
        #expect((backend as? Disk)?.file == "a.img")
    }

    @Test func `resolving opens nothing`() throws {
        let (type, specification) = try catalog.resolve("disk:file=missing")
        #expect(type.scheme == "disk")
        #expect(specification.text == "disk:file=missing")
        #expect(throws: BackendError("'missing' is missing")) {
            try catalog.makeBackend("disk:file=missing", context: context())
        }
    }

    @Test func `an unknown backend is answered with those there are`() {
        let error = #expect(throws: BackendError.self) { try catalog.resolve("tape:file=x") }
        #expect(error?.reason == "no backend 'tape'; there are: disk, host")
    }

    @Test func `an unknown parameter is answered with those there are`() {
        let error = #expect(throws: BackendError.self) {
            try catalog.resolve("disk:file=x,colour=1")
        }
        #expect(
            error?.reason == "'colour' is not a parameter of 'disk'; there are: file, readonly, id")
    }

    @Test func `a missing parameter is answered with an example`() {
        let error = #expect(throws: BackendError.self) { try catalog.resolve("disk:readonly") }
        #expect(error?.reason.contains("lacks 'file=PATH'") == true)
        #expect(error?.reason.contains("disk:file=disk.img") == true)
    }

    @Test func `a device node of usbfs stands for the device behind it`() throws {
        let (type, specification) = try catalog.resolve("/dev/bus/usb/001/004")
        #expect(type.scheme == "host")
        #expect(specification.text == "host:bus=1,address=4")
    }

    @Test(
        "paths that are no device node are refused",
        arguments: [
            "/dev/bus/usb/001", "/dev/bus/usb/001/004/5", "/dev/bus/usb/1/256", "/dev/bus/usb//4",
            "/dev/bus/usb/a/b", "/dev/bus/usb/",
        ])
    func wrongNode(path: String) {
        #expect(throws: BackendError.self) { try catalog.resolve(path) }
    }
}

private final class Disk: DeviceBackend {
    static let scheme = "disk"
    static let summary = "a disk"
    static let parameters = [
        Parameter("file", value: "PATH", isRequired: true, summary: "the file"),
        Parameter("readonly", value: nil, summary: "no writing"),
    ]
    static let example = "disk:file=disk.img"

    let file: String?

    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {
        file = try specification.value(of: "file")
        if file == "missing" { throw BackendError("'missing' is missing") }
    }

    func start(on bus: any USBBus) throws(BackendError) {}
    func stop() {}
}

private final class Host: DeviceBackend {
    static let scheme = "host"
    static let summary = "a device of the host"
    static let parameters = [
        Parameter("bus", value: "N", isRequired: true, summary: "bus"),
        Parameter("address", value: "N", isRequired: true, summary: "address"),
    ]
    static let example = "host:bus=1,address=4"

    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {}
    func start(on bus: any USBBus) throws(BackendError) {}
    func stop() {}
}
