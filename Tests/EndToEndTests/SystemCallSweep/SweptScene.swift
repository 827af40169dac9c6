// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import GuestKit
import RemoteGuest
import TestKit
import VFIOClient
import VMKit

/// A server from its start to its end, with clients that use it while a system call fails.
final class SweptScene {
    /// A failure that no injected fault excuses.
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
    /// Whether a system call has failed as injected.
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

    /// Runs the scene without a fault.
    ///
    /// - Returns: the system calls of these names, which can be made to fail.
    func rehearse(_ calls: [String]) throws -> [TracedServer.Call] {
        let traced = try start(calls: calls, fault: nil)
        try traced.server.waitForLog("control requests at")
        try session()
        try traced.server.process.waitUntilAsleep()
        guard try traced.server.terminate() == 0 else {
            throw Violation("the server ended with an error: \(traced.server.log)")
        }
        return try traced.calls()
    }

    /// Runs the scene while a system call fails.
    func play(_ fault: CallFault) throws {
        let traced = try start(calls: [fault.call], fault: fault)
        let server = traced.server
        defer {
            server.process.kill()
            if (try? traced.hasMetFault()) == true { hasMetFault = true }
        }
        guard try hasStarted(server) else { return try checkRefusal(server) }
        let before = try server.openDescriptors()
        // One call fails in each of two threads, so the third client must be served.
        for attempt in 1...3 {
            do {
                try session()
                break
            } catch let violation as Violation {
                throw violation
            } catch {
                guard server.process.isRunning else {
                    throw Violation("the server ended with \(error): \(server.log)")
                }
                if attempt == 3 { throw Violation("no client is served: \(error)\n\(server.log)") }
            }
        }
        try server.process.waitUntilAsleep()
        let open = try server.openDescriptors()
        if open.count > before.count {
            throw Violation("descriptors are left: \(open), and there were \(before)")
        }
        let status = try server.terminate()
        // The last flush may fail, and the log then says so.
        let hasLost = status == 1 && server.log.contains("could not be written")
        guard status == 0 || hasLost && fault.call == "fdatasync" else {
            throw Violation("the server ended with status \(status): \(server.log)")
        }
        try checkFile()
    }

    private func hasStarted(_ server: RunningServer) throws -> Bool {
        try server.process.wait(
            for: "the server to start or to exit", within: .seconds(60)
        ) {
            if server.log.contains("control requests at") { return true }
            return server.process.isRunning ? nil : false
        }
    }

    private func checkRefusal(_ server: RunningServer) throws {
        let log = server.log
        let status = try server.process.waitForExit(within: .seconds(1))
        guard status == 1, log.contains("Error: "), !log.contains("Fatal error") else {
            throw Violation("the server did not start and ended with status \(status): \(log)")
        }
    }

    private func checkFile() throws {
        let bytes = [UInt8](try Data(contentsOf: URL(filePath: image)))
        if bytes != contents {
            throw Violation("the file does not have the data that the guest has flushed")
        }
    }

    // MARK: - One client

    /// Runs a VMM and its guest, from connect to disconnect.
    ///
    /// - Throws: ``Violation``, or another error that an injected fault excuses.
    private func session() throws {
        sessions += 1
        let wire = try WireClient(path: socket)
        wire.timeout = .seconds(10)
        defer {
            wire.whileWaiting = nil
            wire.close()
        }
        let memory = try GuestRAM(size: 4 << 20)
        let machine = try VMMKind.cloudHypervisor.start(memory: memory, wire: wire)
        wire.whileWaiting = { [unowned machine] in try Self.wait(wire, machine) }
        let driver = GuestDriver(machine)
        try driver.start()
        let stick = try GuestStick(driver)
        try use(stick)
        try requestDevices()
        try read(stick, blocks: 0..<16)
        if !memory.damagedCanaries().isEmpty {
            throw Violation("memory outside of buffers was written")
        }
    }

    private func use(_ stick: GuestStick) throws {
        guard try stick.blockCount() == contents.count / 512 else {
            throw Violation("the stick has another size")
        }
        // A client that failed may or may not have written the other blocks.
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
        if bytes != Array(expected) {
            throw Violation("the stick returns other bytes than were written")
        }
    }

    /// Waits up to 1 ms for a message of the server or an interrupt.
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

    /// Lists, attaches and detaches devices as a management tool does.
    private func requestDevices() throws {
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
