// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Logging
import Platform
import TestKit
import Testing
import USB

/// The catalog: backends found by specification or bare name, and the operations they declare.
struct BackendCatalogTests {
    private let catalog = BackendCatalog(Disk.self, Host.self)

    private func context() throws -> BackendContext {
        BackendContext(loop: try EpollLoop(), logger: .silent)
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

    @Test func `an unknown backend is refused with the known ones`() {
        let error = #expect(throws: BackendError.self) { try catalog.resolve("tape:file=x") }
        #expect(error?.reason == "no backend 'tape'; there are: disk, host")
    }

    @Test func `an unknown parameter is refused with the known ones`() {
        let error = #expect(throws: BackendError.self) {
            try catalog.resolve("disk:file=x,colour=1")
        }
        #expect(
            error?.reason == "'colour' is not a parameter of 'disk'; there are: file, readonly, id")
    }

    @Test func `a missing parameter is refused with an example`() {
        let error = #expect(throws: BackendError.self) { try catalog.resolve("disk:readonly") }
        #expect(error?.reason.contains("lacks 'file=PATH'") == true)
        #expect(error?.reason.contains("disk:file=disk.img") == true)
    }

    @Test func `a bare name stands for the specification of the backend that recognizes it`() throws
    {
        let (type, specification) = try catalog.resolve("usb@1/4")
        #expect(type.scheme == "host")
        #expect(specification.text == "host:bus=1,address=4")
        #expect(catalog.bareNames.map(\.form) == ["usb@BUS/ADDRESS"])
    }

    @Test("other bare names are refused", arguments: ["usb@1", "usb@1/4/5", "/dev/sda", "usb@/"])
    func unknownName(name: String) {
        let error = #expect(throws: BackendError.self) { try catalog.resolve(name) }
        #expect(error?.reason.contains("names no device: write BACKEND:KEY=VALUE") == true)
    }

    @Test func `operations are listed once, in the order of the backends`() {
        #expect(catalog.operations.map(\.name) == ["rewind", "eject"])
        #expect(catalog.backends(offering: "eject").map { $0.scheme } == ["disk", "host"])
        #expect(BackendCatalog.operations(of: Host.self).map(\.name) == ["eject"])
    }
}

private final class Disk: OperableBackend {
    static let scheme = "disk"
    static let summary = "a disk"
    static let parameters = [
        Parameter("file", value: "PATH", isRequired: true, summary: "the file"),
        Parameter("readonly", value: nil, summary: "no writing"),
    ]
    static let example = "disk:file=disk.img"
    static let operations = [
        BackendOperation("rewind", summary: "A sentence."),
        BackendOperation("eject", summary: "A sentence."),
    ]

    let file: String?

    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {
        file = try specification.value(of: "file")
        if file == "missing" { throw BackendError("'missing' is missing") }
    }

    func start(on bus: any USBBus) throws(BackendError) {}
    func stop() {}
    func execute(_ call: OperationCall, completion: @escaping (BackendError?) -> Void) {}
}

private final class Host: OperableBackend {
    static let scheme = "host"
    static let summary = "a device of the host"
    static let parameters = [
        Parameter("bus", value: "N", isRequired: true, summary: "bus"),
        Parameter("address", value: "N", isRequired: true, summary: "address"),
    ]
    static let example = "host:bus=1,address=4"
    static let bareNames = [
        BareName("usb@BUS/ADDRESS") { name in
            guard let parts = name.wholeMatch(of: /usb@(\d+)\/(\d+)/) else { return nil }
            return "host:bus=\(parts.1),address=\(parts.2)"
        }
    ]
    static let operations = [BackendOperation("eject", summary: "Another sentence.")]

    init(_ specification: DeviceSpecification, context: BackendContext) throws(BackendError) {}
    func start(on bus: any USBBus) throws(BackendError) {}
    func stop() {}
    func execute(_ call: OperationCall, completion: @escaping (BackendError?) -> Void) {}
}
