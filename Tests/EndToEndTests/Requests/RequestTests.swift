// SPDX-License-Identifier: Apache-2.0

import Foundation
import GuestKit
import RemoteGuest
import TestKit
import Testing
import VFIOClient
import VMKit

/// The built program as a control client of a running server, whose controller a guest uses.
struct RequestTests {
    private let folder: TemporaryFolder
    private var socket: String { folder.file("socket") }
    private var controlPath: String { folder.file("control") }

    init() throws { folder = try TemporaryFolder() }

    private func serve(_ devices: String...) throws -> RunningServer {
        try RunningServer(
            ["--socket-path", socket, "--control-path", controlPath]
                + devices.flatMap { ["--device", $0] }, folder: folder)
    }

    /// Makes an image whose bytes are all the same.
    private func image(_ name: String, blocks: Int, of byte: UInt8) throws -> String {
        let path = folder.file(name)
        try Data(repeating: byte, count: blocks * 512).write(to: URL(filePath: path))
        return path
    }

    /// Runs a subcommand against the server.
    private func ask(_ arguments: String...) throws -> CompletedProgram {
        try runProgram(arguments + ["--control-path", controlPath])
    }

    private func succeed(_ arguments: String...) throws {
        let program = try runProgram(arguments + ["--control-path", controlPath])
        #expect(program.status == 0, "\(arguments): \(program.errors)")
        #expect(!program.output.isEmpty)
    }

    private func boot() throws -> GuestDriver {
        let machine = try VMMKind.cloudHypervisor.start(
            memory: GuestRAM(), wire: WireClient(path: socket))
        let driver = GuestDriver(machine)
        try driver.start()
        return driver
    }

    @Test func `a stick is attached, gets another medium, is ejected, and is detached`() throws {
        let server = try serve()
        let driver = try boot()
        let first = try image("first.img", blocks: 64, of: 1)
        let second = try image("second.img", blocks: 32, of: 2)

        try succeed("attach", "storage:file=\(first)", "--id", "stick")
        let stick = try GuestStick(driver)
        #expect(try stick.blockCount() == 64)
        #expect(try stick.read(block: 0, count: 64) == Array(repeating: 1, count: 64 * 512))
        let written = [UInt8](repeating: 9, count: 512)
        try stick.write(written, block: 3)

        try succeed("insert", "stick", "file=\(second),readonly")
        // The next command reports the change (UNIT ATTENTION).
        #expect(throws: GuestStick.Failure.self) { try stick.read(block: 0, count: 1) }
        #expect(try stick.blockCount() == 32)
        #expect(try stick.read(block: 0, count: 32) == Array(repeating: 2, count: 32 * 512))
        #expect(throws: GuestStick.Failure.self) { try stick.write(written, block: 0) }
        #expect(
            try [UInt8](Data(contentsOf: URL(filePath: first)))[3 * 512..<4 * 512] == written[...])

        try succeed("eject", "stick")
        #expect(throws: GuestStick.Failure.self) { try stick.blockCount() }
        #expect(try ask("list").output.contains("without a medium"))
        try succeed("insert", "stick", "storage:file=\(first)")
        #expect(try stick.blockCount() == 64)
        try succeed("detach", "stick")
        #expect(driver.machine.advance { !driver.port(9).contains(.connected) })
        #expect(try ask("list").output.contains("no devices"))
        #expect(try server.terminate() == 0)
    }

    @Test func `devices are listed as text and as JSON`() throws {
        let path = try image("a.img", blocks: 8, of: 0)
        let server = try serve(
            "storage:file=\(path),readonly", "storage:file=\(path),readonly,id=b")
        let list = try ask("list")
        #expect(list.output.contains("virtual machine: not connected"))
        for word in ["storage-1", "attached", "super", "storage \(path)"] {
            #expect(list.output.contains(word), "\(list.output)")
        }
        let driver = try boot()
        let json = try ask("list", "--json").output
        let object = try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any]
        #expect(object?["client"] as? Bool == true)
        let devices = try #require(object?["devices"] as? [[String: Any]])
        #expect(devices.map { $0["id"] as? String } == ["storage-1", "b"])
        #expect(devices.map { $0["port"] as? Int } == [9, 10])
        let refused = try ask("detach", "missing", "--json")
        #expect(refused.status == 1)
        #expect(refused.output.contains(#""code":"no-such-device""#))
        withExtendedLifetime(driver) {}
        #expect(try server.terminate() == 0)
    }

    @Test func `an image is opened by the client and passed to the server`() throws {
        let server = try serve()
        let driver = try boot()
        let path = try image("a.img", blocks: 8, of: 5)
        // The path is relative to the client's working directory.
        let program = try runProgram(
            ["attach", "storage:file=a.img", "--control-path", controlPath, "--json"],
            folder: folder.path)
        #expect(program.status == 0)
        let answer = Data(program.output.utf8)
        let object = try JSONSerialization.jsonObject(with: answer) as? [String: Any]
        let device = try #require(object?["device"] as? [String: Any])
        #expect(device["spec"] as? String == "storage:file=\(path)")
        try FileManager.default.removeItem(atPath: path)
        #expect(try GuestStick(driver).readAll() == Array(repeating: 5, count: 8 * 512))
        #expect(try server.terminate() == 0)
    }

    @Test(
        "an error has an exit status, a reason and advice",
        arguments: [
            (["detach", "missing"], "there are: storage-1"),
            (["attach", "storage:file=/nowhere/a.img"], "there is no '/nowhere/a.img'"),
            (["attach", "tape:file=x"], "there are: storage"),
            (["attach", "/dev/bus/usb/250/120"], "no device 250:120"),
            (["eject", "storage-1"], "removable=off"),
            (["faults", "storage-1", "x"], "no faults"),
            (["insert", "storage-1", "colour=red"], "there are: file"),
        ])
    func failure(arguments: [String], reason: String) throws {
        let path = try image("a.img", blocks: 8, of: 0)
        let server = try serve("storage:file=\(path),removable=off")
        let program = try runProgram(arguments + ["--control-path", controlPath])
        #expect(program.status == 1)
        #expect(program.errors.contains(reason), "\(program.errors)")
        #expect(program.output.isEmpty)
        #expect(try server.terminate() == 0)
    }

    @Test func `a device without a free port is refused with advice`() throws {
        let server = try serve()
        for _ in 0..<8 { try succeed("attach", "loopback:speed=super") }
        let refused = try ask("attach", "loopback:speed=super")
        #expect(refused.status == 1)
        #expect(
            refused.errors.contains(
                "all 8 SuperSpeed ports are in use; use speed=high or detach a device"))
        try succeed("attach", "loopback:speed=high")
        #expect(try server.terminate() == 0)
    }

    @Test func `fault rules of a test device are replaced while it is attached`() throws {
        let server = try serve("loopback:speed=high")
        try succeed("faults", "loopback-1", "bulk-in stall after=9")
        try succeed("faults", "loopback-1", "")
        let wrong = try ask("faults", "loopback-1", "bulk-in dance")
        #expect(wrong.status == 1)
        #expect(wrong.errors.contains("dance"))
        #expect(try server.terminate() == 0)
    }

    @Test func `without a server the error says how to start one`() throws {
        let missing = try ask("list")
        #expect(missing.status == 1)
        #expect(missing.errors.contains("start the server with --control-path"))
        let unsaid = try runProgram("list")
        #expect(unsaid.status == 64)
        #expect(unsaid.errors.contains("--control-path PATH"))
    }

    @Test func `the control socket has mode 0600, and a stale one is replaced`() throws {
        let first = try serve()
        let attributes = try FileManager.default.attributesOfItem(atPath: controlPath)
        #expect(attributes[.posixPermissions] as? Int == 0o600)
        let second = try runProgram(
            "--socket-path", folder.file("other"), "--control-path", controlPath)
        #expect(second.status == 1)
        #expect(second.errors.contains("another server listens at '\(controlPath)'"))
        first.process.kill()
        try FileManager.default.removeItem(atPath: socket)
        let third = try serve()
        #expect(try ask("list").status == 0)
        #expect(try third.terminate() == 0)
        #expect(!FileManager.default.fileExists(atPath: controlPath))
    }

    @Test func `the data of a device attached at run time is written when the program ends`() throws
    {
        let server = try serve()
        let driver = try boot()
        let path = try image("a.img", blocks: 8, of: 0)
        try succeed("attach", "storage:file=\(path)")
        let stick = try GuestStick(driver)
        _ = try stick.blockCount()
        try stick.write(Array(repeating: 3, count: 512), block: 7)
        #expect(try server.terminate() == 0)
        #expect(try Data(contentsOf: URL(filePath: path)).last == 3)
    }

    @Test func `a thousand devices attached and detached under load leak nothing`() throws {
        let steady = try image("steady.img", blocks: 256, of: 0)
        let passing = try image("passing.img", blocks: 8, of: 7)
        let server = try serve("storage:file=\(steady)")
        let stick = try GuestStick(try boot())
        _ = try stick.blockCount()
        let control = try WireClient(path: controlPath)
        func exchange(_ line: String) throws {
            try control.send(Array("\(line)\n".utf8))
            var answer: [UInt8] = []
            while answer.last != UInt8(ascii: "\n") {
                answer += try control.receiveOnce(upTo: 4096)
            }
            let text = String(decoding: answer, as: UTF8.self)
            try #require(text.contains(#""ok":true"#), "\(text)")
        }
        func round(_ number: Int) throws {
            try exchange(
                #"{"request":"attach","spec":"storage:file=\#(passing),id=passing"}"#)
            let block = number % 256
            try stick.write(
                Array(repeating: UInt8(truncatingIfNeeded: number), count: 512), block: block)
            try exchange(#"{"request":"detach","id":"passing"}"#)
            #expect(
                try stick.read(block: block, count: 1)
                    == Array(repeating: UInt8(truncatingIfNeeded: number), count: 512))
            // The event ring has room for the events of a few rounds only.
            stick.driver.discard { _ in true }
        }
        for number in 0..<50 { try round(number) }
        try server.process.waitUntilAsleep()
        let descriptors = try server.openDescriptors()
        let memory = server.process.memory("RssAnon")
        for number in 50..<1000 { try round(number) }
        #expect(try holdsEventually { try server.openDescriptors() == descriptors })
        // Sanitizers keep freed memory for a while.
        if !Server.isSanitized { #expect(server.process.memory("RssAnon") < memory + 4096) }
        #expect(try server.terminate() == 0)
        let contents = try [UInt8](Data(contentsOf: URL(filePath: steady)))
        for block in 0..<256 {
            // The last round below 1000 that wrote the block.
            let last = block + (999 - block) / 256 * 256
            #expect(contents[block * 512] == UInt8(truncatingIfNeeded: last))
        }
    }
}
