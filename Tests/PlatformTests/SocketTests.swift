// SPDX-License-Identifier: Apache-2.0

import Foundation
import Platform
import SystemPackage
import TestKit
import Testing

@Suite("UNIX sockets")
struct SocketTests {
    let folder: TemporaryFolder
    var path: String { folder.file("socket") }

    init() throws { folder = try TemporaryFolder() }

    private func exists() -> Bool { FileManager.default.fileExists(atPath: path) }

    @Test("a pending client is accepted, and none if none is pending")
    func connects() throws {
        let listener = try ListeningSocket(bindingTo: path)
        let isNonePending = try listener.accept() == nil
        #expect(isNonePending)
        let client = try UnixSocket.connect(to: path)
        let server = try listener.accept()
        guard let server else { throw Errno.badFileDescriptor }
        #expect(try send([1, 2, 3], to: client) == 3)
        var list = DescriptorList()
        #expect(try receive(10, &list, from: server) == [1, 2, 3])
        #expect(throws: Errno.wouldBlock) { try receive(10, &list, from: server) }
        _ = consume client
        #expect(try eventually { try receive(10, &list, from: server) } == [])
    }

    @Test("a listener removes its socket file, but not a file that has replaced it")
    func removesFile() throws {
        var listener: ListeningSocket? = try ListeningSocket(bindingTo: path)
        #expect(exists() && listener?.path == path)
        listener = nil
        #expect(!exists())

        listener = try ListeningSocket(bindingTo: path)
        try FileManager.default.removeItem(atPath: path)
        let other = try ListeningSocket(bindingTo: path)
        listener = nil
        #expect(exists())
        withExtendedLifetime(other) {}
    }

    @Test("a socket file without a listening process is replaced")
    func stale() throws {
        // A second name for the file outlives the server.
        let second = path + "2"
        do {
            let listener = try ListeningSocket(bindingTo: path)
            try FileManager.default.linkItem(atPath: path, toPath: second)
            #expect(throws: ListeningSocket.BindError.inUse) {
                _ = try ListeningSocket(bindingTo: second)
            }
            withExtendedLifetime(listener) {}
        }
        #expect(
            try holdsEventually {
                do { _ = try UnixSocket.connect(to: second) } catch .connectionRefused {
                    return true
                }
                return false
            })
        let listener = try ListeningSocket(bindingTo: second)
        _ = try UnixSocket.connect(to: second)
        withExtendedLifetime(listener) {}
    }

    @Test("a socket file with a listening process is refused and kept")
    func live() throws {
        let listener = try ListeningSocket(bindingTo: path)
        #expect(throws: ListeningSocket.BindError.inUse) {
            _ = try ListeningSocket(bindingTo: path)
        }
        #expect(exists())
        // Even if the queue of pending connections is full.
        var clients: [ClientHolder] = []
        while clients.count < 100 {
            guard let client = try? UnixSocket.connect(to: path) else { break }
            clients.append(ClientHolder(client))
        }
        #expect(clients.count < 100)
        #expect(throws: ListeningSocket.BindError.inUse) {
            _ = try ListeningSocket(bindingTo: path)
        }
        withExtendedLifetime(listener) {}
    }

    @Test("a file that is not a socket is refused and kept")
    func notASocket() throws {
        try Data([1]).write(to: URL(fileURLWithPath: path))
        #expect(throws: ListeningSocket.BindError.notASocket) {
            _ = try ListeningSocket(bindingTo: path)
        }
        #expect(exists())
    }

    @Test("a path of 107 bytes is accepted, one of 108 refused")
    func pathLength() throws {
        let longest =
            folder.path + "/"
            + String(
                repeating: "x", count: 107 - folder.path.utf8.count - 1)
        #expect(longest.utf8.count == 107)
        let listener = try ListeningSocket(bindingTo: longest)
        _ = try UnixSocket.connect(to: longest)
        withExtendedLifetime(listener) {}
        #expect(throws: ListeningSocket.BindError.failed(.fileNameTooLong)) {
            _ = try ListeningSocket(bindingTo: longest + "x")
        }
        #expect(throws: Errno.fileNameTooLong) { _ = try UnixSocket.connect(to: longest + "x") }
    }

    @Test("a missing folder is an error")
    func noFolder() {
        #expect(throws: ListeningSocket.BindError.failed(.noSuchFileOrDirectory)) {
            _ = try ListeningSocket(bindingTo: folder.path + "/none/socket")
        }
        #expect(throws: Errno.noSuchFileOrDirectory) {
            _ = try UnixSocket.connect(to: path)
        }
    }

    @Test("a listening socket, a connected socket and a pipe are distinguished")
    func kinds() throws {
        let listener = try ListeningSocket(bindingTo: path)
        let client = try UnixSocket.connect(to: path)
        let kinds = [client.isListeningSocket, try TestPipe().readEnd.isListeningSocket]
        #expect(kinds == [false, nil])
        withExtendedLifetime(listener) {}
    }

    // MARK: - Descriptors

    @Test(
        "descriptors are received with the bytes, and closed with the list",
        arguments: [0, 1, 16, 64])
    func descriptors(count: Int) throws {
        let listener = try ListeningSocket(bindingTo: path)
        let client = try UnixSocket.connect(to: path)
        guard let server = try listener.accept() else { throw Errno.badFileDescriptor }
        let pipe = try TestPipe()
        #expect(
            try send(
                [9], descriptors: [CInt](repeating: pipe.writeNumber, count: count), to: client)
                == 1)
        pipe.closeWriteEnd()
        do {
            var list = DescriptorList()
            #expect(try receive(1, &list, from: server) == [9])
            let isWhole = list.count == count && !list.isTruncated
            #expect(isWhole)
            #expect(try count == 0 ? pipe.isWriteEndClosed() : pipe.isWriteEndOpen())
        }
        #expect(try pipe.isWriteEndClosed())
    }

    @Test("more than 64 descriptors are not sent")
    func tooMany() throws {
        let listener = try ListeningSocket(bindingTo: path)
        let client = try UnixSocket.connect(to: path)
        let pipe = try TestPipe()
        #expect(throws: Errno.invalidArgument) {
            try send(
                [9], descriptors: [CInt](repeating: pipe.writeNumber, count: 65), to: client)
        }
        withExtendedLifetime(listener) {}
    }

    @Test("a send after the peer has closed is an error, not a signal")
    func brokenPipe() throws {
        let listener = try ListeningSocket(bindingTo: path)
        let client = try UnixSocket.connect(to: path)
        _ = consume listener
        #expect(
            try holdsEventually {
                do { _ = try send([1], to: client) } catch Errno.brokenPipe, Errno.connectionReset {
                    return true
                }
                return false
            })
    }

    @Test("wait returns when the descriptor is ready, or at the timeout")
    func waits() throws {
        let pipe = try TestPipe()
        let start = ContinuousClock.now
        #expect(
            try UnixSocket.wait(for: .readable, on: pipe.readEnd, timeout: .milliseconds(2)) == [])
        #expect(ContinuousClock.now - start >= .milliseconds(2))
        try pipe.write([1])
        let timeout = Duration.seconds(30)
        #expect(
            try UnixSocket.wait(for: .readable, on: pipe.readEnd, timeout: timeout) == .readable)
        _ = try pipe.read(1)
        pipe.closeWriteEnd()
        #expect(
            try UnixSocket.wait(for: .readable, on: pipe.readEnd, timeout: timeout) == .closed)
    }

    private final class ClientHolder {
        let client: OwnedDescriptor

        init(_ client: consuming OwnedDescriptor) { self.client = client }
    }

    private func send(
        _ bytes: [UInt8], descriptors: [CInt] = [], to socket: borrowing OwnedDescriptor
    ) throws -> Int {
        let copy = try socket.duplicate()
        return try bytes.withUnsafeBytes {
            try UnixSocket.send($0, descriptors: descriptors, to: copy)
        }
    }

    private func receive(
        _ count: Int, _ list: inout DescriptorList, from socket: borrowing OwnedDescriptor
    ) throws -> [UInt8] {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 1)
        defer { buffer.deallocate() }
        let received = try UnixSocket.receive(into: buffer, descriptors: &list, from: socket)
        return Array(buffer[..<received])
    }
}
