// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestKit
import Testing
import VMKit

/// The command line: its help, its lists and its errors.
struct CommandLineTests {
    private let folder: TemporaryFolder
    private var socket: String { folder.file("socket") }

    init() throws { folder = try TemporaryFolder() }

    @Test func `help has examples`() throws {
        let help = try runProgram("--help")
        #expect(help.status == 0)
        for word in [
            "--socket-path", "--device", "--fd", "--user-device socket=", "shared=on",
            "storage:file=stick.img,readonly", "/dev/bus/usb/", "usbvfiod backends",
            "usbvfiod devices",
            "--version",
        ] {
            #expect(help.output.contains(word), "\(word) is missing")
        }
    }

    @Test func `the version has three numbers`() throws {
        let version = try runProgram("--version")
        #expect(version.status == 0)
        #expect(version.output.wholeMatch(of: /\d+\.\d+\.\d+\n/) != nil)
    }

    @Test func `backends are listed with parameters, operations and an example`() throws {
        let list = try runProgram("backends")
        #expect(list.status == 0)
        for word in [
            "storage:", "file=PATH", "[readonly]", "host:", "bus=", "--device storage:",
            "--device /dev/bus/usb/BUS/ADDRESS", "usbvfiod insert <id> <medium> [--force]",
            "for example: usbvfiod insert storage-1 file=other.img",
        ] {
            #expect(list.output.contains(word), "\(word) is missing")
        }
    }

    @Test func `the list of backends as JSON has parameters and operations`() throws {
        let list = try runProgram("backends", "--json")
        let object = try JSONSerialization.jsonObject(with: Data(list.output.utf8))
        let backends = try #require((object as? [String: Any])?["backends"] as? [[String: Any]])
        #expect(backends.compactMap { $0["scheme"] as? String } == ["storage", "host", "loopback"])
        let parameters = try #require(backends.first?["parameters"] as? [[String: Any]])
        let file = try #require(parameters.first { $0["name"] as? String == "file" })
        #expect(file["required"] as? Bool == true)
        #expect(file["value"] as? String == "PATH")
        let operations = try #require(backends.first?["operations"] as? [[String: Any]])
        #expect(operations.compactMap { $0["name"] as? String } == ["insert", "eject"])
        let arguments = try #require(operations.first?["arguments"] as? [[String: Any]])
        #expect(arguments.compactMap { $0["type"] as? String } == ["specification", "flag"])
        #expect(backends.map { $0["bareNames"] as? [String] ?? [] }.joined().count == 1)
    }

    @Test func `devices of this host are listed, as text and as JSON`() throws {
        let text = try runProgram("devices")
        #expect(text.status == 0)
        #expect(!text.output.isEmpty && !text.output.contains("\u{1b}"))
        let list = try runProgram("devices", "--json")
        let object = try JSONSerialization.jsonObject(with: Data(list.output.utf8))
        #expect((object as? [String: Any])?["devices"] is [[String: Any]])
    }

    @Test func `capabilities are JSON with a type`() throws {
        let capabilities = try runProgram("--print-capabilities")
        #expect(capabilities.status == 0)
        let object = try JSONSerialization.jsonObject(with: Data(capabilities.output.utf8))
        #expect((object as? [String: Any])?["type"] is String)
    }

    /// A usage error ends with exit code 64 and a message that says what is allowed.
    @Test(
        "a usage error says what is allowed",
        arguments: [
            ([], "--socket-path PATH"),
            (["--socket-path", "/x", "--fd", "3"], "exclude each other"),
            (["--socket-path", ""], "needs a path"),
            (["--fd", "-1"], "--fd"),
            (["--fd", "three"], "--fd"),
            (["--socket", "/x"], "--socket-path"),
            (["--socket-path", "/x", "more"], "more"),
            (["--socket-path", "/x", "--device", "tape:file=x"], "there are: storage, host"),
            (["--socket-path", "/x", "--device", "storage:file=x,colour=red"], "there are: file"),
            (["--socket-path", "/x", "--device", "storage:readonly"], "file=PATH"),
            (["--socket-path", "/x", "--device", "storage:file=x,file=y"], "twice"),
            (["--socket-path", "/x", "--device", ""], "usbvfiod backends"),
            (["--socket-path", "/x", "--device", "/dev/sda"], "usbvfiod backends"),
        ])
    func wrongCall(arguments: [String], explanation: String) throws {
        let program = try runProgram(arguments)
        #expect(program.status == 64)
        #expect(program.errors.contains(explanation), "\(program.errors)")
        #expect(program.output.isEmpty)
    }

    /// Any other error ends with exit code 1 and one line.
    @Test func `an image that cannot be opened is named`() throws {
        let missing = try runProgram(
            "--socket-path", socket, "--device", "storage:file=\(folder.path)/missing.img")
        #expect(missing.status == 1)
        #expect(missing.errors.contains("missing.img"))
        #expect(!FileManager.default.fileExists(atPath: socket), "the server must not listen")
    }

    @Test func `a value that a backend refuses is named`() throws {
        let wrong = try runProgram("--socket-path", socket, "--device", "host:bus=300,address=4")
        #expect(wrong.status == 1)
        #expect(wrong.errors.contains("'bus=300' must be a number from"))
    }

    @Test func `a socket cannot be made in a missing folder`() throws {
        let program = try runProgram("--socket-path", folder.file("no/socket"))
        #expect(program.status == 1)
        #expect(program.errors.contains("no/socket"))
    }

    @Test("a path may have 107 bytes and no more", arguments: [108, 300])
    func longPath(length: Int) throws {
        let name = String(repeating: "x", count: length - folder.path.count - 1)
        let program = try runProgram("--socket-path", folder.file(name))
        #expect(program.status == 1)
        #expect(program.errors.contains("107"))
    }

    @Test func `a file that is not a socket is not replaced`() throws {
        try "precious".write(toFile: socket, atomically: false, encoding: .utf8)
        let program = try runProgram("--socket-path", socket)
        #expect(program.status == 1)
        #expect(program.errors.contains("not a socket"))
        #expect(try String(contentsOfFile: socket, encoding: .utf8) == "precious")
    }

    @Test("a descriptor must be an open socket", arguments: ["0", "999"])
    func wrongDescriptor(number: String) throws {
        let program = try runProgram("--fd", number)
        #expect(program.status == 1)
        #expect(program.errors.contains("descriptor \(number)"))
    }

    @Test func `sockets that systemd passed to another process are not used`() throws {
        let program = try runProgram([], environment: ["LISTEN_PID": "1", "LISTEN_FDS": "1"])
        #expect(program.status == 64)
    }
}
