// SPDX-License-Identifier: Apache-2.0

import Testing
import VFIOClient

@testable import VFIOUser

@Suite("VERSION")
struct VersionTests {
    @Test("the reply to Cloud Hypervisor's VERSION has the members it requires")
    func cloudHypervisor() throws {
        let harness = try Harness()
        let answer = try harness.exchange(
            hex(
                """
                0000 0100 70000000 00000000 00000000  # number 0, VERSION, 112 bytes, a command
                0000 0100                             # version 0.1
                """) + Array(CloudHypervisorClient.versionData.utf8) + [0])
        let expected = """
            {"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576}}
            """
        #expect(
            answer
                == hex(
                    """
                    0000 0100 55000000 01000000 00000000  # number 0, VERSION, 85 bytes, a reply
                    0000 0100                             # version 0.1
                    """) + Array(expected.utf8) + [0])
    }

    @Test(
        "the reply to QEMU's VERSION is not longer than the request, with the lower minor version")
    func qemu() throws {
        let harness = try Harness()
        let data = Array(QEMUClient.versionData.utf8) + [0]
        let answer = try harness.exchange(
            WireMessage(
                id: 7, command: 1, payload: WireMessage.version(minor: 0, json: data)
            ).bytes)
        let expected = """
            {"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"pgsizes":4096,\
            "max_dma_maps":65535,"write_multiple":true}}
            """
        #expect(Array(answer.dropFirst(20)) == Array(expected.utf8) + [0])
        #expect(Array(answer[16..<20]) == [0, 0, 0, 0])
        #expect(answer.count <= 20 + data.count)
    }

    @Test("a newer minor version is answered with 1")
    func futureMinor() throws {
        let harness = try Harness()
        let reply = try harness.client.request(1, WireMessage.version(minor: 9, json: []))
        #expect(Array(reply.payload.prefix(4)) == [0, 0, 1, 0])
        #expect(!reply.isError)
    }

    @Test(
        "version data may lack the terminating NUL, or be absent",
        arguments: ["", "{}", "{}\0", "{\"capabilities\":{}}", " { } \0\0", "{\"other\":[1,{}]}"])
    func tolerated(json: String) throws {
        let harness = try Harness()
        let reply = try harness.client.request(
            1, WireMessage.version(minor: 1, json: Array(json.utf8)))
        #expect(!reply.isError)
        #expect(try harness.isAlive())
    }

    @Test(
        "malformed version data is refused and the connection ends",
        arguments: [
            "{", "\"", "{\"capabilities\":\"23\"}", "{\"capabilities\":{\"max_msg_fds\":\"foo\"}}",
            "{\"capabilities\":{\"max_msg_fds\":-1}}", "{\"capabilities\":{\"max_msg_fds\":1.5}}",
            "{\"capabilities\":{\"max_msg_fds\":18446744073709551616}}",
            "{\"capabilities\":{\"max_data_xfer_size\":0}}", "{} x", "[]", "{\"a\":01}",
            "{\"a\":}", "{\"a\" 1}", "{\"a\":1,}", "{a:1}", "{\"a\":tru}", "\u{1}",
            "{\"capabilities\":{\"write_multiple\":1}}", "{\"a\":\"\\",
        ])
    func malformed(json: String) throws {
        let harness = try Harness()
        let reply = try harness.client.request(
            1, WireMessage.version(minor: 1, json: Array(json.utf8) + [0]))
        #expect(reply.isError)
        #expect(reply.error == 22)
        #expect(reply.size == 16)
        #expect(try harness.client.isClosedByServer())
        guard case .protocolViolation(let reason) = try harness.end() else {
            Issue.record("the connection did not end")
            return
        }
        #expect(reason.hasPrefix("malformed version data: "))
    }

    @Test("version data nests 8 levels, one more is refused")
    func depth() {
        func data(_ depth: Int) -> [UInt8] {
            Array(
                ("{\"x\":" + String(repeating: "[", count: depth - 1)
                    + String(repeating: "]", count: depth - 1) + "}").utf8)
        }
        #expect((try? VersionCapabilities(data(VFIOUserLimits.versionDataDepth).span)) != nil)
        #expect((try? VersionCapabilities(data(VFIOUserLimits.versionDataDepth + 1).span)) == nil)
        #expect(
            (try? VersionCapabilities([UInt8](repeating: UInt8(ascii: "["), count: 4000).span))
                == nil)
    }

    @Test("version data has 4096 bytes, one more is refused")
    func length() {
        func data(_ count: Int) -> [UInt8] {
            Array("{}".utf8) + [UInt8](repeating: UInt8(ascii: " "), count: count - 2)
        }
        #expect((try? VersionCapabilities(data(VFIOUserLimits.versionData).span)) != nil)
        #expect((try? VersionCapabilities(data(VFIOUserLimits.versionData + 1).span)) == nil)
    }

    @Test("known members are read among unknown ones")
    func values() throws {
        let data = Array(
            """
            {"x": {"max_msg_fds": 3}, "capabilities": {"max_msg_fds": 8, "twin_socket":
            {"supported": true}, "max_data_xfer_size": 65536, "pgsizes": 4096, "y": [1, -2.5e+3,
            null, "\\"}"], "write_multiple": true, "migration": {"pgsize": 4096}}}
            """.utf8)
        var expected = VersionCapabilities()
        expected.maxDescriptors = 8
        expected.maxDataTransfer = 65536
        expected.pageSizes = 4096
        expected.writesMultiple = true
        #expect(try VersionCapabilities(data.span) == expected)
    }

    @Test("the reply is not longer than its limit")
    func answerLength() {
        for limit in 65...200 {
            #expect(VersionCapabilities().reply(limit: limit).count <= limit)
        }
    }

    @Test("a client that announces no more than rust-vmm's serves no memory")
    func servesMemory() {
        func capabilities(_ text: String) -> VersionCapabilities? {
            try? VersionCapabilities(Array(text.utf8).span)
        }
        #expect(capabilities(CloudHypervisorClient.versionData)?.servesMemory == false)
        #expect(capabilities("{}")?.servesMemory == false)
        #expect(capabilities(QEMUClient.versionData)?.servesMemory == true)
        #expect(capabilities(#"{"capabilities":{"max_msg_fds":8}}"#)?.servesMemory == true)
    }

    @Test("another major version is refused and the connection ends")
    func majorVersion() throws {
        let harness = try Harness()
        let reply = try harness.client.request(1, WireMessage.version(major: 1, minor: 0, json: []))
        #expect(reply.isError && reply.error == 22)
        #expect(try harness.client.isClosedByServer())
    }

    @Test("a VERSION message without a version is refused", arguments: 0..<4)
    func tooShort(count: Int) throws {
        let harness = try Harness()
        let reply = try harness.client.request(1, [UInt8](repeating: 0, count: count))
        #expect(reply.isError && reply.error == 22)
        #expect(try harness.client.isClosedByServer())
    }

    @Test("a first message other than VERSION is refused", arguments: [0, 2, 4, 9, 13, 999])
    func versionFirst(command: UInt16) throws {
        let harness = try Harness()
        let reply = try harness.client.request(command)
        #expect(reply.isError && reply.error == 22)
        #expect(try harness.client.isClosedByServer())
        #expect(harness.device.resets == 0)
    }

    @Test("a request with the no-reply flag before VERSION gets no reply")
    func noAnswerBeforeVersion() throws {
        let harness = try Harness()
        let answer = try harness.exchange(
            WireMessage(id: 1, command: 7, flags: WireMessage.noReply).bytes)
        #expect(answer.isEmpty)
        guard case .protocolViolation = try harness.end() else {
            Issue.record("the connection did not end")
            return
        }
    }

    @Test("a second VERSION is refused and changes nothing")
    func versionTwice() throws {
        let harness = try Harness.ready()
        let reply = try harness.client.request(1, WireMessage.version(minor: 0, json: []))
        #expect(reply.isError && reply.error == 22)
        #expect(try harness.isAlive())
        #expect(harness.connection?.servesMemory == true)
    }

    @Test("the test client's version data is as long as QEMU's")
    func qemuLength() {
        #expect(20 + QEMUClient.versionData.utf8.count + 1 == 214)
    }
}
