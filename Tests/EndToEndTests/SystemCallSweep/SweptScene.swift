// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import GuestKit
import RemoteGuest
import TestKit
import VFIOClient
import VMKit

/// A server, and what clients do with it from its start to its end.
final class SweptScene {
    /// A promise that was broken, whatever failed.
    struct Violation: Error, CustomStringConvertible {
        let description: String

        init(_ description: String) { self.description = description }
    }

    private let folder: TemporaryFolder
    private var contents: [UInt8]
    private var image: String { folder.file("stick.img") }
    private var socket: String { folder.file("socket") }
    private var control: String { folder.file("control") }
    private var sessions: UInt64 = 0
    /// Whether one of the system calls that were to fail has failed.
    private(set) var hasMetFault = false

    init() throws {
        folder = try TemporaryFolder()
        var random = SplitMix64(seed: 1)
        contents = random.bytes(256 * 512)
        try Data(contents).write(to: URL(filePath: image))
        try Data(count: 64 * 512).write(to: URL(filePath: folder.file("other.img")))
    }

    private func start(calls: [String], fault: CallFault?) throws -> TracedServer {
        try TracedServer(
            calls: calls, fault: fault,
            [
                "--socket-path", socket, "--control-path", control, "--device",
                "storage:file=\(image)",
            ], folder: folder)
    }

    /// All of it without a fault: the system calls that there are to fail.
    func rehearse(_ calls: [String]) throws -> [TracedServer.Call] {
        let traced = try start(calls: calls, fault: nil)
        try traced.server.waitForLog("control requests at")
        try session()
        try traced.server.process.waitUntilAsleep()
        guard try traced.server.terminate() == 0 else {
            throw Violation("it did not end well: \(traced.server.log)")
        }
        return try traced.calls()
    }

    /// The same while a system call fails.
    func play(_ fault: CallFault) throws {
        let traced = try start(calls: [fault.call], fault: fault)
        let server = traced.server
        defer {
            server.process.kill()
            if (try? traced.hasMetFault()) == true { hasMetFault = true }
        }
        guard try hasStarted(server) else { return try checkRefusal(server) }
        let before = try server.openDescriptors()
        // One call fails in each of two threads, so the third client meets none.
        for attempt in 1...3 {
            do {
                try session()
                break
            } catch let violation as Violation {
                throw violation
            } catch {
                guard server.process.isRunning else {
                    throw Violation("it ended with \(error): \(server.log)")
                }
                if attempt == 3 { throw Violation("it serves nobody: \(error)\n\(server.log)") }
            }
        }
        try server.process.waitUntilAsleep()
        let open = try server.openDescriptors()
        if open.count > before.count {
            throw Violation("descriptors are left: \(open), and there were \(before)")
        }
        let status = try server.terminate()
        // The last flush of all is one that may fail, and is told of.
        let hasLost = status == 1 && server.log.contains("could not be written")
        guard status == 0 || hasLost && fault.call == "fdatasync" else {
            throw Violation("it ended with status \(status): \(server.log)")
        }
        try checkFile()
    }

    private func hasStarted(_ server: RunningServer) throws -> Bool {
        try server.process.wait(
            for: "the server to start or to say why not", within: .seconds(60)
        ) {
            if server.log.contains("control requests at") { return true }
            return server.process.isRunning ? nil : false
        }
    }

    private func checkRefusal(_ server: RunningServer) throws {
        let log = server.log
        let status = try server.process.waitForExit(within: .seconds(1))
        guard status == 1, log.contains("Error: "), !log.contains("Fatal error") else {
            throw Violation("it did not start, and ended with status \(status): \(log)")
        }
    }

    private func checkFile() throws {
        let bytes = [UInt8](try Data(contentsOf: URL(filePath: image)))
        if bytes != contents {
            throw Violation("the file is not what the guest was told that it is")
        }
    }

    // MARK: - One client

    /// A monitor and its guest, from connecting to leaving.
    ///
    /// - Throws: ``Violation`` for what no failure excuses.
    private func session() throws {
        sessions += 1
        let wire = try WireClient(path: socket)
        wire.timeout = .seconds(10)
        defer {
            wire.whileWaiting = nil
            wire.close()
        }
        let memory = try GuestRAM(size: 4 << 20)
        let machine = try Monitor.cloudHypervisor.start(memory: memory, wire: wire)
        wire.whileWaiting = { [unowned machine] in try Self.wait(wire, machine) }
        let driver = GuestDriver(machine)
        try driver.start()
        let stick = try GuestStick(driver)
        try use(stick)
        try askForDevices()
        try read(stick, blocks: 0..<16)
        if !memory.damagedCanaries().isEmpty {
            throw Violation("memory that was not handed out was written")
        }
    }

    private func use(_ stick: GuestStick) throws {
        guard try stick.blockCount() == contents.count / 512 else {
            throw Violation("the stick has another size")
        }
        // What is in the others after a client that failed, nobody can tell.
        let written = 8..<48
        try read(stick, blocks: 0..<written.lowerBound)
        try read(stick, blocks: written.upperBound..<contents.count / 512)
        try stick.discard(block: 16, count: 8)
        var random = SplitMix64(seed: sessions)
        let new = random.bytes(written.count * 512)
        contents.replaceSubrange(written.lowerBound * 512..<written.upperBound * 512, with: new)
        try stick.write(new, block: written.lowerBound)
        try read(stick, blocks: written)
        try stick.synchronize()
        try checkFile()
    }

    private func read(_ stick: GuestStick, blocks: Range<Int>) throws {
        let bytes = try stick.read(block: blocks.lowerBound, count: blocks.count)
        let expected = contents[blocks.lowerBound * 512..<blocks.upperBound * 512]
        if bytes != Array(expected) { throw Violation("other bytes than were written are read") }
    }

    /// Waits for a moment, or until the server has something to say.
    private static func wait(_ wire: WireClient, _ machine: RemoteMachine) throws {
        var entries = [pollfd(fd: wire.socketNumber ?? -1, events: Int16(POLLIN), revents: 0)]
        if let event = machine.client.events.first {
            entries.append(pollfd(fd: event.descriptor, events: Int16(POLLIN), revents: 0))
        }
        _ = poll(&entries, nfds_t(entries.count), 1)
        if entries[0].revents & Int16(POLLHUP) != 0 {
            throw WireClient.Failure("the server closed the connection")
        }
        _ = machine.client.events.first?.take()
    }

    /// A management tool: a device is listed, attached and detached.
    private func askForDevices() throws {
        let wire = try WireClient(path: control)
        wire.timeout = .seconds(10)
        func ask(_ request: String) throws {
            try wire.send(Array(request.utf8) + [0x0a])
            var answer: [UInt8] = []
            while answer.last != 0x0a {
                let bytes = try wire.receiveOnce(upTo: 4096)
                if bytes.isEmpty { throw WireClient.Failure("no answer to \(request)") }
                answer += bytes
            }
            let text = String(decoding: answer, as: UTF8.self)
            guard text.contains(#""ok":true"#) || text.contains(#""error":"#) else {
                throw Violation("'\(request)' is answered by '\(text)'")
            }
            if text.contains(#""error":"#) { throw WireClient.Failure(text) }
        }
        try ask(#"{"request":"list"}"#)
        let other = "storage:file=\(folder.file("other.img")),readonly"
        try ask(#"{"request":"attach","spec":"\#(other)","id":"other-\#(sessions)"}"#)
        try ask(#"{"request":"detach","id":"other-\#(sessions)"}"#)
    }
}
