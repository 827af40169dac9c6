// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Glibc
import GuestKit
import Platform
import Service
import TestKit
import Testing
import VFIOClient

/// The control socket with clients that are fast, slow, wrong or hostile.
struct ControlConnectionTests {
    private static let list = #"{"request":"list"}"#

    private let bench: ControlBench

    init() throws { bench = try ControlBench() }

    /// Whether the server still serves.
    private func expectService() throws {
        #expect(try bench.client().ask(Self.list).isGood)
    }

    @Test(
        "a line that is no request is answered with what is wrong, and the next one executed",
        arguments: [
            ("", ControlError.Code.badRequest, "not a JSON object"),
            ("list", .badRequest, #"{"request":"list"}"#),
            ("{", .badRequest, "not a JSON object"),
            ("[]", .badRequest, "not a JSON object"),
            ("null", .badRequest, "not a JSON object"),
            ("\u{0}", .badRequest, "not a JSON object"),
            (String(repeating: "[", count: 60000), .badRequest, "not a JSON object"),
            (String(repeating: #"{"a":"#, count: 10000), .badRequest, "not a JSON object"),
            ("{}", .badRequest, "lacks 'request'"),
            (#"{"request":7}"#, .badRequest, "'request' must be a string"),
            (#"{"request":null}"#, .badRequest, "'request' must be a string"),
            (#"{"request":"dance"}"#, .unknownRequest, "list, attach, detach"),
            (#"{"request":"list","id":"x"}"#, .badRequest, "no field 'id'"),
            (#"{"request":"attach"}"#, .badRequest, "lacks 'spec'"),
            (#"{"request":"attach","spec":["x"]}"#, .badRequest, "'spec' must be a string"),
            (#"{"request":"detach"}"#, .badRequest, "lacks 'id'"),
            (#"{"request":"eject","id":"x","force":"yes"}"#, .badRequest, "true or false"),
            (#"{"request":"faults","id":"x"}"#, .badRequest, "lacks 'rules'"),
            (#"{"request":"insert","id":"x"}"#, .badRequest, "lacks 'spec'"),
        ])
    func wrongLine(line: String, code: ControlError.Code, reason: String) throws {
        let client = try bench.client()
        let answer = try client.ask(line)
        #expect(!answer.isGood && answer.code == code)
        #expect(answer.error?.contains(reason) == true, "\(answer.error ?? "")")
        #expect(try client.ask(Self.list).isGood)
    }

    @Test func `bytes that are not UTF-8 are answered`() throws {
        let client = try bench.client()
        try client.wire.send([0xff, 0xfe, 0x80, 0x0a])
        #expect(try client.answer().code == .badRequest)
        #expect(try client.ask(Self.list).isGood)
    }

    @Test("a line that is too long ends the connection", arguments: [0, 1])
    func longLine(excess: Int) throws {
        let client = try bench.client()
        let space = ServiceLimits.controlLine - Self.list.utf8.count + excess
        try client.send(Self.list + String(repeating: " ", count: space))
        let answer = try client.answer()
        #expect(answer.isGood == (excess == 0))
        if excess > 0 {
            #expect(answer.error?.contains("65536") == true)
            #expect(try client.wire.isClosedByServer())
        } else {
            #expect(try client.ask(Self.list).isGood)
        }
        try expectService()
    }

    @Test func `a line may arrive byte by byte, and many lines at once`() throws {
        let client = try bench.client()
        for byte in Array("\(Self.list)\n".utf8) {
            try client.wire.send([byte])
            try bench.turn()
        }
        #expect(try client.answer().isGood)
        let many = 200
        try client.wire.send(
            Array(String(repeating: "\(Self.list)\n{}\n", count: many).utf8))
        for _ in 0..<many {
            #expect(try client.answer().isGood)
            #expect(try client.answer().code == .badRequest)
        }
    }

    @Test func `answers have the order of the requests, although some take time`() throws {
        let client = try bench.client()
        try client.ask(#"{"request":"attach","spec":"fake:slow"}"#)
        let backend = try #require(bench.backends.first)
        try client.send(#"{"request":"detach","id":"fake-1"}"# + "\n" + Self.list)
        #expect(try bench.turn { backend.stopCount == 1 })
        backend.finish()
        #expect(try client.answer().devices == nil)
        #expect(try client.answer().devices == [])
    }

    @Test func `a device that takes time to attach is waiting and blocks no other client`() throws {
        let (one, two) = (try bench.client(), try bench.client())
        try one.send(#"{"request":"attach","spec":"fake:late","id":"x"}"#)
        #expect(try bench.turn { !bench.backends.isEmpty })
        let backend = try #require(bench.backends.first)
        #expect(backend.isServing)
        #expect(try two.list().map(\.id) == ["x"])
        #expect(try two.list().map(\.state) == [.waiting])
        #expect(try two.ask(#"{"request":"attach","spec":"fake","id":"x"}"#).code == .idTaken)
        #expect(try two.ask(#"{"request":"detach","id":"x"}"#).code == .busy)
        backend.finish()
        #expect(try one.answer().device?.port == 1)
        #expect(try two.list().map(\.state) == [.attached])
        #expect(try two.ask(#"{"request":"detach","id":"x"}"#).isGood)
    }

    @Test func `a device that fails to attach is removed, and its id is free`() throws {
        let client = try bench.client()
        try client.send(#"{"request":"attach","spec":"fake:late","id":"x"}"#)
        #expect(try bench.turn { !bench.backends.isEmpty })
        try #require(bench.backends.first).finish(BackendError("it is held"))
        let answer = try client.answer()
        #expect(answer.code == .refused)
        #expect(answer.error == "it is held")
        #expect(try client.list().isEmpty)
        #expect(bench.backends.isEmpty)
        #expect(try client.ask(#"{"request":"attach","spec":"fake","id":"x"}"#).isGood)
    }

    @Test func `a client that shuts down its sending side gets the answers`() throws {
        let client = try bench.client()
        try client.send("\(Self.list)\n\(Self.list)")
        _ = Glibc.shutdown(try #require(client.wire.socketNumber), CInt(SHUT_WR))
        #expect(try client.answer().isGood)
        #expect(try client.answer().isGood)
        #expect(try client.wire.isClosedByServer())
    }

    @Test func `an incomplete line at the end is answered and not executed`() throws {
        let client = try bench.client()
        try client.wire.send(Array(#"{"request":"attach","spec":"fake"}"#.utf8))
        _ = Glibc.shutdown(try #require(client.wire.socketNumber), CInt(SHUT_WR))
        #expect(try client.answer().error?.contains("no line feed") == true)
        #expect(try client.wire.isClosedByServer())
        #expect(bench.backends.isEmpty)
    }

    @Test func `the number of clients is limited, and one that disconnects makes room`() throws {
        var clients: [ControlTestClient] = []
        for _ in 0..<ServiceLimits.controlClients {
            clients.append(try bench.client())
            #expect(try clients.last?.ask(Self.list).isGood == true)
        }
        let rejected = try bench.client()
        #expect(try rejected.answer().code == .tooMany)
        #expect(try rejected.wire.isClosedByServer())
        clients.removeLast().wire.close()
        #expect(
            try bench.turn { bench.control.clientCount == ServiceLimits.controlClients - 1 })
        try expectService()
    }

    @Test func `a line that is not completed in time ends the connection`() throws {
        let client = try bench.client()
        #expect(try client.ask(Self.list).isGood)
        try client.wire.send(Array(Self.list.utf8))
        bench.passTimeout()
        #expect(try client.wire.isClosedByServer())
        #expect(try bench.client().ask(Self.list).isGood)
    }

    @Test func `a client that does not read its answers is disconnected`() throws {
        let client = try bench.client()
        let name = String(repeating: "x", count: 7000)
        for _ in 0..<32 {
            try client.ask(#"{"request":"attach","spec":"fake:portless,file=\#(name)"}"#)
        }
        let greedy = try bench.connect()
        let lines = Array(String(repeating: "\(Self.list)\n", count: 3000).utf8)
        // The first answer alone is larger than the socket's buffer.
        var sent = 0
        while sent < lines.count, let count = try greedy.sendSome(Array(lines[sent...])) {
            sent += count
            try bench.turn()
        }
        #expect(bench.control.clientCount == 2)
        bench.passTimeout()
        #expect(try bench.turn { bench.control.clientCount == 1 })
        #expect(try client.list().count == 32)
    }

    // MARK: - Descriptors

    @Test func `a descriptor reaches the backend of its request`() throws {
        let client = try bench.client()
        let memory = try SharedMemory(size: 4096)
        // The kernel may join messages or split them; a descriptor stays with the line it was sent with.
        try client.send(Self.list)
        try client.send(#"{"request":"attach","spec":"fake"}"#, descriptors: [memory.descriptor])
        try client.send(#"{"request":"attach","spec":"fake"}"#)
        try client.wire.send(
            Array(#"{"request":"insert","#.utf8), descriptors: [memory.descriptor])
        try client.send(#""id":"fake-2","spec":"file=x"}"#)
        for _ in 0..<4 { #expect(try client.answer().isGood) }
        let backends = bench.backends
        #expect(backends.map { $0.passed != nil } == [true, false])
        let attached = try #require(backends.first?.passed)
        let takes = [isThere(attached.take()), isThere(attached.take())]
        #expect(takes == [true, false], "it is handed over once")
        let inserted = try #require(backends.last?.calls.first?.descriptor)
        let isInserted = isThere(inserted.take())
        #expect(isInserted)
    }

    private func isThere(_ descriptor: consuming OwnedDescriptor?) -> Bool { descriptor != nil }

    @Test(
        "descriptors without a use are refused and closed",
        arguments: [
            (Self.list, 1), (#"{"request":"detach","id":"x"}"#, 1), ("garbage", 1),
            (#"{"request":"attach","spec":"fake"}"#, 2),
            (#"{"request":"attach","spec":"fake"}"#, 64),
            (#"{"request":"attach","spec":"tape"}"#, 1),
        ])
    func unwanted(line: String, count: Int) throws {
        let client = try bench.client()
        let passed = try TestPipe()
        try client.send(
            line, descriptors: Array(repeating: passed.writeNumber, count: count))
        #expect(try client.answer().isGood == false)
        #expect(try client.ask(Self.list).isGood)
        passed.closeWriteEnd()
        #expect(try bench.turn { try passed.isWriteEndClosed(within: .zero) })
    }

    @Test func `a line with many descriptors keeps none`() throws {
        let client = try bench.client()
        let passed = try TestPipe()
        for byte in Array(#"{"request":"attach","#.utf8) {
            try client.wire.send(
                [byte], descriptors: Array(repeating: passed.writeNumber, count: 60))
            try bench.turn()
        }
        passed.closeWriteEnd()
        #expect(try bench.turn { try passed.isWriteEndClosed(within: .zero) })
        try client.send(#""spec":"fake"}"#)
        #expect(try client.answer().code == .badRequest)
        #expect(try client.ask(Self.list).isGood)
    }

    // MARK: - Random input

    @Test("random bytes do no harm", arguments: 0..<8)
    func randomBytes(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let passed = try TestPipe()
        let words = [
            "{", "}", "\"", ":", ",", "\n", "request", "list", "attach", "spec", "fake", "id",
            "detach", "fake-1", "\\u0000", "[", "]", "true", "1e999", "insert", "eject", "force",
            #"{"request":"attach","spec":"fake"}"#, #"{"request":"detach","id":"fake-1"}"#,
            #"{"request":"eject","id":"fake-2"}"#, Self.list,
        ]
        for _ in 0..<40 {
            let wire = try bench.connect()
            for _ in 0..<Int.random(in: 1...30, using: &random) {
                var bytes: [UInt8] = []
                for _ in 0..<Int.random(in: 1...20, using: &random) {
                    if Bool.random(using: &random) {
                        bytes += Array(words[Int.random(in: words.indices, using: &random)].utf8)
                    } else {
                        bytes.append(UInt8.random(in: 0...255, using: &random))
                    }
                }
                let descriptors =
                    Int.random(in: 0..<10, using: &random) == 0 ? [passed.writeNumber] : []
                do { _ = try wire.sendSome(bytes, descriptors: descriptors) } catch { break }
                if Bool.random(using: &random) { _ = try? wire.receiveSome(65536) }
                try bench.turn()
            }
            wire.close()
        }
        try expectService()
        #expect(try bench.turn { bench.control.clientCount == 0 })
        let client = try bench.client()
        for device in try client.list() {
            #expect(try client.ask(#"{"request":"detach","id":"\#(device.id)"}"#).isGood)
        }
        client.wire.close()
        #expect(try bench.turn { bench.control.clientCount == 0 })
        #expect(bench.backends.isEmpty)
        #expect(try passed.areCopiesClosed())
        #expect(try bench.turn { bench.openSockets() == 1 })
    }
}
