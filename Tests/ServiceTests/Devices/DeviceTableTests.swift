// SPDX-License-Identifier: Apache-2.0

import BackendKit
import GuestKit
import Service
import Testing
import USB
import VFIOClient

/// Requests about devices: list, attach, detach and operations, with their answers.
struct DeviceTableTests {
    private let bench: ControlBench
    private let client: ControlTestClient

    init() throws {
        bench = try ControlBench()
        client = try bench.client()
    }

    private func attach(_ specification: String) throws -> ControlAnswer {
        try client.ask(#"{"request":"attach","spec":"\#(specification)"}"#)
    }

    @Test func `only the owner may connect`() throws {
        #expect(try bench.permissions() == 0o600)
    }

    @Test func `a list has the devices, the client and the version of the protocol`() throws {
        let empty = try client.ask(#"{"request":"list"}"#)
        #expect(empty.isGood && empty.devices == [] && empty.hasClient == false)
        #expect(empty.version == 1)

        try bench.devices.open("fake:speed=super,id=first")
        try bench.devices.attachOpened()
        let vmm = try bench.bench.client()
        let list = try client.ask(#"{"request":"list"}"#)
        #expect(list.hasClient == true)
        let device = try #require(list.devices?.first)
        #expect(device.id == "first" && device.specification == "fake:speed=super,id=first")
        #expect(device.summary == "test device" && device.speed == "super")
        #expect(device.port == 9 && device.state == .attached)
        withExtendedLifetime(vmm) {}
    }

    @Test func `a guest sees a device connect and disconnect`() throws {
        let driver = GuestDriver(try bench.bench.machine())
        try driver.start()
        #expect(try attach("fake").device?.port == 1)
        #expect(try bench.turn { driver.port(1).contains(.connected) })
        #expect(try driver.addressNewDevice().slotContext.state == .addressed)
        #expect(try client.ask(#"{"request":"detach","id":"fake-1"}"#).isGood)
        #expect(try bench.turn { !driver.port(1).contains(.connected) })
        #expect(try client.list().isEmpty)
        #expect(bench.backends.isEmpty, "a detached backend is released")
    }

    @Test func `the number of an id is not used twice`() throws {
        #expect(try attach("fake").device?.id == "fake-1")
        #expect(try attach("fake:id=fake-2").device?.id == "fake-2")
        try client.ask(#"{"request":"detach","id":"fake-1"}"#)
        #expect(try attach("fake").device?.id == "fake-3")
        let named = try client.ask(#"{"request":"attach","spec":"fake","id":"my_own.id"}"#)
        #expect(named.device?.id == "my_own.id")
        #expect(try client.list().map(\.id) == ["fake-2", "fake-3", "my_own.id"])
    }

    @Test(
        "a refused attach has a reason",
        arguments: [
            ("fake:broken", nil, ControlError.Code.refused, "it is broken"),
            ("tape:file=x", nil, .refused, "there are: fake, fixed"),
            ("fake:colour=red", nil, .refused, "'colour' is not a parameter"),
            ("", nil, .refused, "names no device"),
            ("fake:id=a", "b", .badRequest, "two ids"),
            ("fake", "present", .idTaken, "'present'"),
            ("fake", "", .refused, "cannot be the id"),
            ("fake", "a b", .refused, "cannot be the id"),
            ("fake:id=ü", nil, .refused, "cannot be the id"),
            (#"fake:file=a\u0000b"#, nil, .refused, "zero byte"),
        ])
    func refusal(
        specification: String, id: String?, code: ControlError.Code, reason: String
    ) throws {
        _ = try attach("fake:id=present")
        let idField = id.map { #","id":"\#($0)""# } ?? ""
        let answer = try client.ask(
            #"{"request":"attach","spec":"\#(specification)"\#(idField)}"#)
        #expect(!answer.isGood && answer.code == code)
        #expect(answer.error?.contains(reason) == true, "\(answer.error ?? "")")
        #expect(try client.list().count == 1)
    }

    @Test("an id has 64 characters at most", arguments: [64, 65])
    func longID(count: Int) throws {
        let id = String(repeating: "x", count: count)
        #expect(try attach("fake:id=\(id)").isGood == (count == 64))
    }

    @Test("the length of a specification is limited", arguments: [0, 1])
    func longSpecification(excess: Int) throws {
        let start = "fake:file="
        let count = ServiceLimits.specification - start.count + excess
        let answer = try attach(start + String(repeating: "x", count: count))
        #expect(answer.isGood == (excess == 0))
        #expect(excess == 0 || answer.error?.contains("8192") == true)
    }

    @Test func `the number of devices is limited, and a detached one makes room`()
        throws
    {
        for _ in 0..<ServiceLimits.devices { #expect(try attach("fake:portless").isGood) }
        let answer = try attach("fake:portless")
        #expect(answer.code == .tooMany)
        #expect(try client.ask(#"{"request":"detach","id":"fake-7"}"#).isGood)
        #expect(try attach("fake:portless").isGood)
    }

    @Test func `a device without a free port is refused and released`() throws {
        for _ in 0..<8 { #expect(try attach("fake").isGood) }
        let answer = try attach("fake")
        #expect(answer.code == .refused)
        #expect(answer.error?.contains("no port") == true)
        #expect(bench.backends.count == 8)
        #expect(try attach("fake:speed=super").isGood)
    }

    @Test func `a device that disconnects by itself is waiting`() throws {
        _ = try attach("fake")
        try #require(bench.backends.first).device.port?.disconnect()
        #expect(try bench.turn { try client.list().first?.state == .waiting })
        #expect(try client.list().first?.port == nil)
        #expect(try client.ask(#"{"request":"detach","id":"fake-1"}"#).isGood)
    }

    @Test func `a device that disconnected by itself is deallocated when another one is attached`()
        throws
    {
        _ = try attach("fake")
        let backend = try #require(bench.backends.first)
        weak let first = backend.device
        try backend.replug()
        #expect(try bench.turn { first == nil })
        #expect(try client.list().first?.state == .attached)
    }

    @Test func `a detach is answered when the data is written, and blocks no other client`() throws
    {
        _ = try attach("fake:slow")
        let backend = try #require(bench.backends.first)
        try client.send(#"{"request":"detach","id":"fake-1"}"#)
        let other = try bench.client()
        #expect(try bench.turn { try other.list().first?.state == .detaching })
        #expect(try other.ask(#"{"request":"detach","id":"fake-1"}"#).code == .busy)
        #expect(try other.ask(#"{"request":"eject","id":"fake-1"}"#).code == .busy)
        #expect(backend.stopCount == 1)
        backend.finish()
        #expect(try client.answer().isGood)
        #expect(try other.list().isEmpty)
    }

    @Test func `a detach that cannot write data fails, and the device is removed`() throws {
        _ = try attach("fake:slow")
        let backend = try #require(bench.backends.first)
        try client.send(#"{"request":"detach","id":"fake-1"}"#)
        #expect(try bench.turn { backend.stopCount == 1 })
        backend.finish(BackendError("the disk is full"))
        let answer = try client.answer()
        #expect(answer.code == .failed)
        #expect(answer.error?.contains("the disk is full") == true)
        #expect(try client.list().isEmpty)
    }

    @Test func `an operation that takes effect and loses data fails`() throws {
        _ = try attach("fake:slow")
        let backend = try #require(bench.backends.first)
        try client.send(#"{"request":"eject","id":"fake-1","force":true}"#)
        #expect(try bench.turn { !backend.waiting.isEmpty })
        backend.finish(BackendError("the disk is full", tookEffect: true))
        #expect(try client.answer().code == .failed)
    }

    @Test func `stop returns whether all data was written, and stops all backends`() throws {
        _ = try attach("fake")
        _ = try attach("fake:full")
        _ = try attach("fake")
        let backends = bench.backends
        #expect(!bench.devices.stop())
        #expect(backends.map(\.stopCount) == [1, 1, 1])
        #expect(bench.devices.stop())
    }

    @Test func `a client may disconnect while its request is executed`() throws {
        _ = try attach("fake:slow")
        let backend = try #require(bench.backends.first)
        let leaving = try bench.client()
        try leaving.send(#"{"request":"detach","id":"fake-1"}"#)
        #expect(try bench.turn { backend.stopCount == 1 })
        leaving.wire.close()
        try bench.turn()
        backend.finish()
        #expect(try bench.turn { bench.control.clientCount == 1 })
        #expect(try client.list().isEmpty)
    }

    @Test func `an operation reaches the backend with its arguments`() throws {
        _ = try attach("fake")
        let backend = try #require(bench.backends.first)
        #expect(try client.ask(#"{"request":"insert","id":"fake-1","spec":"file=a:b"}"#).isGood)
        #expect(
            try client.ask(
                #"{"request":"insert","id":"fake-1","spec":"fake:file=c","force":true}"#
            ).isGood)
        #expect(try client.ask(#"{"request":"eject","id":"fake-1","force":true}"#).isGood)
        #expect(try client.ask(#"{"request":"eject","id":"fake-1","force":false}"#).isGood)
        #expect(try client.ask(#"{"request":"faults","id":"fake-1","rules":"a\nb"}"#).isGood)
        let calls = try backend.calls.map { call in
            let file = try call.specification("spec")?.value(of: "file") ?? "-"
            return "\(call.name) \(file) \(call.flag("force")) \(call.text("rules") ?? "-")"
        }
        #expect(
            calls == [
                "insert a:b false -", "insert c true -", "eject - true -", "eject - false -",
                "faults - false a\nb",
            ])
    }

    @Test func `a device of another kind has no medium and makes no faults`() throws {
        _ = try attach("fixed")
        let medium = try client.ask(#"{"request":"eject","id":"fixed-1"}"#)
        #expect(medium.code == .refused && medium.error?.contains("no medium") == true)
        let faults = try client.ask(#"{"request":"faults","id":"fixed-1","rules":""}"#)
        #expect(faults.code == .refused && faults.error?.contains("faults") == true)
    }

    @Test func `a request for an unknown device names the known ones`() throws {
        for request in ["detach", "eject"] {
            let answer = try client.ask(#"{"request":"\#(request)","id":"x"}"#)
            #expect(answer.code == .noSuchDevice)
            #expect(answer.error == "no device 'x'; there are: none")
        }
        _ = try attach("fake")
        #expect(
            try client.ask(#"{"request":"detach","id":"x"}"#).error
                == "no device 'x'; there are: fake-1")
    }
}
