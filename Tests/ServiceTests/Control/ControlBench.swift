// SPDX-License-Identifier: Apache-2.0

import BackendKit
import ExampleBackend
import Foundation
import GuestKit
import Platform
import Service
import SystemPackage
import TestKit
import VFIOClient

/// A server with a control socket, in the thread of the test. The control socket's clock is simulated.
final class ControlBench {
    let bench: Bench
    let devices: DeviceTable
    let control: ControlServer
    private let loop = SimulatedLoop()
    private let folder: TemporaryFolder
    private var path: String { folder.file("control") }

    init() throws {
        bench = try Bench()
        folder = try TemporaryFolder()
        devices = DeviceTable(
            catalog: BackendCatalog(FakeBackend.self, FixedBackend.self, DiceBackend.self),
            server: bench.server, loop: loop, logger: .silent)
        control = try ControlServer(
            listener: ListeningSocket(
                bindingTo: folder.file("control"), permissions: .ownerReadWrite),
            server: bench.server, devices: devices, loop: loop, logger: .silent,
            timeout: Self.timeout)
    }

    /// The time within which a client must complete a line or read an answer.
    static let timeout = Duration.seconds(10)

    /// Runs the events that are ready on both loops.
    func turn() throws {
        let now = bench.loop.now
        try bench.server.turn(until: loop.turn() ? now : now + .milliseconds(2))
    }

    /// Runs both loops until a condition holds.
    ///
    /// - Returns: whether it holds in time.
    func turn(until condition: () throws -> Bool) throws -> Bool {
        try holdsEventually {
            if try condition() { return true }
            try turn()
            return false
        }
    }

    /// Advances the clock by ``timeout`` after all events have been handled.
    func passTimeout() {
        while loop.turn() {}
        loop.advance(to: loop.now + Self.timeout)
    }

    /// The number of kernel sockets bound to the path: the listener's, and one for each accepted
    /// connection that is open.
    func openSockets() -> Int {
        let table = kernelFile("/proc/net/unix") ?? ""
        let inodes = table.split(separator: "\n").filter { $0.hasSuffix(" \(path)") }
            .map { $0.split(separator: " ").dropLast().last }
        return Set(inodes).count
    }

    /// The permissions of the socket's file.
    func permissions() throws -> Int {
        let attributes = try FileManager.default.attributesOfItem(atPath: path)
        return attributes[.posixPermissions] as? Int ?? -1
    }

    func client() throws -> ControlTestClient { ControlTestClient(try connect()) }

    func connect() throws -> WireClient {
        let wire = try WireClient(path: path)
        wire.whileWaiting = { [unowned self] in try turn() }
        return wire
    }

    /// The fake backends that exist, oldest first.
    var backends: [FakeBackend] { FakeBackendRegistry.shared.backends(of: loop) }
}
