// SPDX-License-Identifier: Apache-2.0

import GuestKit
import Logging
import Platform
import RemoteGuest
import Service
import TestKit
import USB
import VFIOClient

/// A server in the thread of the test, whose loop runs while the test waits.
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

    /// The VMMs that share guest memory, so that the server never waits for their replies.
    static let vmms: [VMMKind] = [.cloudHypervisor, .qemu]

    /// A connection whose client runs the server's loop while it waits.
    func connect() throws -> WireClient {
        let wire = try WireClient(path: path)
        wire.whileWaiting = { [unowned self] in try turn() }
        return wire
    }

    /// Runs one pass of the loop, of 2 ms at most.
    func turn() throws { try server.turn(until: loop.now + .milliseconds(2)) }

    /// Runs the loop until a condition holds.
    ///
    /// - Returns: whether it holds in time.
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

    /// A machine with this kind of VMM.
    func machine(
        _ vmm: VMMKind = .cloudHypervisor, memory: GuestRAM? = nil
    ) throws -> RemoteMachine {
        try vmm.start(memory: memory ?? GuestRAM(), wire: connect())
    }

    /// A client that has negotiated the version and sent nothing else.
    func client(resetsFirst: Bool = false) throws -> CloudHypervisorClient {
        let client = CloudHypervisorClient(
            wire: try connect(), memory: [], resetsFirst: resetsFirst)
        try client.start()
        return client
    }
}
