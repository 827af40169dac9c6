// SPDX-License-Identifier: Apache-2.0

import GuestKit
import Logging
import Platform
import RemoteGuest
import Service
import TestKit
import USB
import VFIOClient

/// A server in this very thread: whoever waits for it turns its loop.
final class Bench {
    let loop: EpollLoop
    let server: Server
    private let folder: TemporaryFolder
    private var path: String { folder.file("socket") }

    init(logger: Logger = .silent) throws {
        loop = try EpollLoop()
        folder = try TemporaryFolder()
        server = Server(loop: loop, logger: logger)
        try server.listen(on: ListeningSocket(bindingTo: folder.file("socket")))
    }

    /// The monitors that a server in the same thread never has to wait for.
    static let monitors: [Monitor] = [.cloudHypervisor, .qemu]

    /// A connection whose client turns the server's loop while it waits.
    func connect() throws -> WireClient {
        let wire = try WireClient(path: path)
        wire.whileWaiting = { [unowned self] in try turn() }
        return wire
    }

    /// One turn, which ends soon although nothing happens.
    func turn() throws { try server.turn(until: loop.now + .milliseconds(2)) }

    /// Turns until a condition holds, or the time is over.
    func turn(
        atMost limit: Duration = .seconds(30), until condition: () throws -> Bool
    ) throws -> Bool {
        let end = ContinuousClock.now + limit
        while try !condition() {
            guard ContinuousClock.now < end else { return false }
            try turn()
        }
        return true
    }

    /// A machine with a monitor of this kind.
    func machine(
        _ monitor: Monitor = .cloudHypervisor, memory: GuestRAM? = nil
    ) throws -> RemoteMachine {
        try monitor.start(memory: memory ?? GuestRAM(), wire: connect())
    }

    /// A client that has negotiated and asked for nothing yet.
    func client(resetsFirst: Bool = false) throws -> CloudHypervisorClient {
        let client = CloudHypervisorClient(
            wire: try connect(), memory: [], resetsFirst: resetsFirst)
        try client.start()
        return client
    }
}
