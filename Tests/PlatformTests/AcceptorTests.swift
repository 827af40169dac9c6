// SPDX-License-Identifier: Apache-2.0

import Foundation
import Platform
import SystemPackage
import Testing

@Suite("acceptor")
struct AcceptorTests {
    let loop: EpollLoop
    let path = NSTemporaryDirectory() + "acceptor-" + UUID().uuidString.prefix(8)
    let listener: ListeningSocket

    init() throws {
        loop = try EpollLoop()
        listener = try ListeningSocket(bindingTo: path)
    }

    private func turn() throws { try loop.turn(until: loop.now) }

    @Test("each pending client is accepted, until the acceptor is dropped")
    func accepts() throws {
        var clients = 0
        var acceptor: Acceptor? = try Acceptor(listener: listener, loop: loop) { error in
            Issue.record("\(error)")
        } onClient: { _ in
            clients += 1
        }
        for _ in 0..<3 { _ = try UnixSocket.connect(to: path) }
        for _ in 0..<4 { try turn() }
        #expect(clients == 3)
        acceptor = nil
        _ = try UnixSocket.connect(to: path)
        try turn()
        #expect(clients == 3 && acceptor == nil)
    }

    @Test("a client that may not be accepted stays pending until the acceptor is resumed")
    func suspends() throws {
        var isBusy = true
        var questions = 0
        var clients = 0
        let acceptor = try Acceptor(listener: listener, loop: loop) {
            questions += 1
            return !isBusy
        } onFailure: { error in
            Issue.record("\(error)")
        } onClient: { _ in
            clients += 1
        }
        _ = try UnixSocket.connect(to: path)
        for _ in 0..<3 { try turn() }
        #expect(questions == 1 && clients == 0)
        isBusy = false
        acceptor.resume()
        try turn()
        #expect(clients == 1)
    }

    @Test("a failure pauses the acceptor, and resuming ends the pause")
    func pauses() throws {
        var failures: [Errno] = []
        var clients = 0
        let acceptor = try Acceptor(listener: listener, loop: loop) { error in
            failures.append(error)
        } onClient: { (_) throws(Errno) in
            clients += 1
            if clients == 1 { throw .tooManyOpenFiles }
        }
        for _ in 0..<2 { _ = try UnixSocket.connect(to: path) }
        for _ in 0..<3 { try turn() }
        #expect(failures == [.tooManyOpenFiles] && clients == 1)
        acceptor.resume()
        try turn()
        #expect(clients == 2 && failures.count == 1)
    }

    @Test("a paused acceptor accepts the next client after the delay")
    func retries() throws {
        var clients = 0
        let acceptor = try Acceptor(listener: listener, loop: loop) { _ in
        } onClient: { (_) throws(Errno) in
            clients += 1
            if clients == 1 { throw .tooManyOpenFiles }
        }
        for _ in 0..<2 { _ = try UnixSocket.connect(to: path) }
        try turn()
        let start = loop.now
        while clients < 2, loop.now < start + .seconds(10) {
            try loop.turn(until: start + .seconds(10))
        }
        #expect(clients == 2 && loop.now - start > Acceptor.retryDelay - .milliseconds(100))
        withExtendedLifetime(acceptor) {}
    }
}
