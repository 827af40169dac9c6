// SPDX-License-Identifier: Apache-2.0

import BackendKit
import GuestKit
import Platform
import RemoteGuest
import Service
import Testing
import USB
import VFIOClient

/// Requests made from the operations of backends, and hostile input to them.
struct OperationRequestTests {
    private let bench: ControlBench
    private let client: ControlTestClient

    init() throws {
        bench = try ControlBench()
        client = try bench.client()
    }

    private func attachFake() throws -> FakeBackend {
        try client.ask(#"{"request":"attach","spec":"fake:id=x"}"#)
        return try #require(bench.backends.first)
    }

    @Test func `the die of the guide is loaded while a guest throws it`() throws {
        let wire = try bench.bench.connect()
        wire.whileWaiting = { [bench] in
            bench.passTimeout()
            try bench.turn()
        }
        let driver = GuestDriver(
            try VMMKind.cloudHypervisor.start(memory: GuestRAM(), wire: wire))
        try driver.start()
        try client.ask(#"{"request":"attach","spec":"dice:sides=200"}"#)
        let slot = try driver.addressNewDevice()
        var wanted = GuestEndpointConfiguration.interruptIn(1)
        wanted.maxPacketSize = 1
        let endpoint = try slot.configureOne(wanted)
        try slot.control(SetupPacket(requestType: 0, request: 9, value: 1, index: 0, length: 0))
        for number in [77, 3] {
            let request = #"{"request":"load","id":"dice-1","number":\#(number)}"#
            #expect(try client.ask(request) == ControlAnswer())
            #expect(try endpoint.receive(1) == [UInt8(number)])
        }
        let refused = try client.ask(#"{"request":"load","id":"dice-1","number":201}"#)
        #expect(refused.code == .refused)
        #expect(refused.error == "the die has no side 201, but 200 sides")
    }

    @Test(
        "input that does not match the declaration is refused with what is declared",
        arguments: [
            (#""id":"dice-1""#, "the request lacks 'number'"),
            (#""number":1"#, "the request lacks 'id'"),
            (#""id":1,"number":1"#, "'id' must be a string"),
            (#""id":"dice-1","number":"1""#, "'number' must be a number from 0 to 255"),
            (#""id":"dice-1","number":-1"#, "'number' must be a number from 0 to 255"),
            (#""id":"dice-1","number":256"#, "'number' must be a number from 0 to 255"),
            (#""id":"dice-1","number":1.5"#, "'number' must be a number from 0 to 255"),
            (#""id":"dice-1","number":1e99"#, "'number' must be a number from 0 to 255"),
            (#""id":"dice-1","number":true"#, "'number' must be a number from 0 to 255"),
            (#""id":"dice-1","number":null"#, "'number' must be a number from 0 to 255"),
            (#""id":"dice-1","number":[1]"#, "'number' must be a number from 0 to 255"),
            (#""id":"dice-1","number":1,"again":2"#, "'load' has no field 'again'"),
        ])
    func mismatch(fields: String, reason: String) throws {
        try client.ask(#"{"request":"attach","spec":"dice"}"#)
        let answer = try client.ask(#"{"request":"load",\#(fields)}"#)
        #expect(answer.code == .badRequest)
        #expect(answer.error == reason)
    }

    @Test(
        "words, texts, numbers and paths have bounds",
        arguments: [
            (#""channel":-1"#, nil), (#""channel":100"#, "from -1 to 99"),
            (#""channel":1,"band":"fm""#, nil), (#""channel":1,"band":"FM""#, "one of: am, fm"),
            (#""channel":1,"note":"12345678""#, nil),
            (#""channel":1,"note":"123456789""#, "at most 8 bytes"),
            (#""channel":1,"file":"/x""#, nil), (#""channel":1,"file":"""#, "a path of 1 to 4095"),
            (#""channel":1,"file":"a\u0000""#, "a path of 1 to 4095"),
        ])
    func bounds(fields: String, reason: String?) throws {
        let backend = try attachFake()
        let answer = try client.ask(#"{"request":"tune","id":"x",\#(fields)}"#)
        #expect(answer.isGood == (reason == nil))
        #expect(answer.error?.contains(reason ?? "") != false, "\(answer.error ?? "")")
        #expect(backend.calls.count == (reason == nil ? 1 : 0))
    }

    @Test(
        "names of requests may be hostile", arguments: ["", "Load", "load ", "../load", "\\u0000"])
    func unknownName(name: String) throws {
        let answer = try client.ask(#"{"request":"\#(name)","id":"x"}"#)
        #expect(answer.code == .unknownRequest)
        #expect(
            answer.error?.hasSuffix(
                "list, attach, detach, insert, eject, faults, tune, store, load") == true)
    }

    @Test func `an error repeats no more than eighty characters of a name`() throws {
        let name = String(repeating: "x", count: 60000)
        let unknown = try client.ask(#"{"request":"\#(name)"}"#)
        #expect((unknown.error?.count ?? .max) < 300)
        let extra = try client.ask(#"{"request":"load","id":"x","number":1,"\#(name)":1}"#)
        #expect((extra.error?.count ?? .max) < 300)
    }

    @Test func `an error names the kind of a device that lacks the operation`() throws {
        _ = try attachFake()
        let answer = try client.ask(#"{"request":"load","id":"x","number":1}"#)
        #expect(answer.code == .refused)
        #expect(answer.error == "a device of the kind 'fake' cannot be loaded")
        try client.ask(#"{"request":"attach","spec":"fixed"}"#)
        let generic = try client.ask(#"{"request":"store","id":"fixed-1","file":"/x"}"#)
        #expect(generic.error == "a device of the kind 'fixed' has no operation 'store'")
    }

    @Test func `a descriptor goes with an operation that takes one, and with no other`() throws {
        let backend = try attachFake()
        let memory = try SharedMemory(size: 4096)
        let tune = #"{"request":"tune","id":"x","channel":1,"file":"/x"}"#
        #expect(try client.ask(tune, descriptors: [memory.descriptor]).isGood)
        let received = try #require(backend.calls.first?.descriptor)
        let isThere = received.take() != nil
        #expect(isThere)
        #expect(try client.ask(tune).isGood)
        #expect(backend.calls.last?.descriptor == nil)
        let store = #"{"request":"store","id":"x","file":"/x"}"#
        let refused = try client.ask(store, descriptors: [memory.descriptor])
        #expect(refused.code == .badRequest)
        #expect(refused.error == "a descriptor came with a request that needs none")
        #expect(try client.ask(store).isGood)
    }
}
