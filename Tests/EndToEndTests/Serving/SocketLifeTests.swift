// SPDX-License-Identifier: Apache-2.0

import Foundation
import Platform
import SystemPackage
import TestKit
import Testing
import VFIOClient
import VMKit

/// The socket of a running server: created, inherited, stale, replaced.
struct SocketLifeTests {
    private let folder: TemporaryFolder
    private var socket: String { folder.file("socket") }
    private var hasSocketFile: Bool { FileManager.default.fileExists(atPath: socket) }

    init() throws { folder = try TemporaryFolder() }

    /// Connects a client, which sends what Cloud Hypervisor sends at its start.
    @discardableResult
    private func connect() throws -> CloudHypervisorClient {
        let client = CloudHypervisorClient(wire: try WireClient(path: socket), memory: [])
        try client.start()
        return client
    }

    @Test("a termination signal ends the server", arguments: [SIGTERM, SIGINT])
    func termination(signal: Int32) throws {
        let server = try RunningServer(folder: folder)
        let client = try connect()
        #expect(try server.terminate(signal) == 0)
        #expect(!hasSocketFile)
        #expect(try client.wire.isClosedByServer())
    }

    @Test func `the log has the arguments with which VMMs connect`() throws {
        let server = try RunningServer(folder: folder)
        try server.waitForLog("-device '{")
        #expect(server.log.contains("--user-device socket=\(socket)"))
        #expect(server.log.contains("--memory size=1G,shared=on"))
        #expect(
            server.log.contains(
                #"-device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"\#(socket)"}}'"#
            ))
        #expect(server.log.contains("memory-backend-memfd,id=ram,size=1G,share=on"))
    }

    @Test func `a socket file of a killed server is replaced`() throws {
        let first = try RunningServer(folder: folder)
        first.process.kill()
        #expect(hasSocketFile, "a killed server cannot remove it")
        let second = try RunningServer(folder: folder)
        try connect()
        #expect(try second.terminate() == 0)
    }

    @Test func `a second server at the same path does not affect the first`() throws {
        let first = try RunningServer(folder: folder)
        let client = try connect()
        let second = try runProgram("--socket-path", socket)
        #expect(second.status == 1)
        #expect(second.errors.contains("another server listens at '\(socket)'"))
        #expect(try client.readConfiguration(0, as: UInt32.self) == 0x000d_1b36)
        client.kill()
        try connect()
        #expect(try first.terminate() == 0)
    }

    @Test func `a socket file that another program has created meanwhile is not removed`() throws {
        let server = try RunningServer(folder: folder)
        try FileManager.default.removeItem(atPath: socket)
        let other = try ListeningSocket(bindingTo: socket)
        #expect(try server.terminate() == 0)
        #expect(hasSocketFile)
        withExtendedLifetime(other) {}
    }

    /// Starts the server with a descriptor as number 3, as systemd does.
    private func start(
        withDescriptor descriptor: borrowing OwnedDescriptor, _ command: String, logs text: String
    ) throws -> RunningServer {
        let process = try ChildProcess(
            ["bash", "-c", command, Server.binary], descriptor: descriptor.rawValue,
            output: folder.file("log"))
        let server = RunningServer(process)
        try server.waitForLog(text)
        return server
    }

    @Test func `a connected descriptor is served until its client disconnects`() throws {
        var client: WireClient?
        var server: RunningServer?
        client = try WireClient.connected { socket in
            server = try start(
                withDescriptor: socket, #"exec "$0" --fd 3"#, logs: "serving one client")
        }
        let vmm = CloudHypervisorClient(wire: try #require(client), memory: [])
        try vmm.start()
        vmm.kill()
        #expect(try server?.process.waitForExit(within: .seconds(60)) == 0)
    }

    @Test(
        "a listening descriptor serves one client after the other, and its file is not removed",
        arguments: [#"exec "$0" --fd 3"#, #"LISTEN_PID=$$ LISTEN_FDS=1 exec "$0""#])
    func listening(command: String) throws {
        let path = socket
        let number = try listeningDescriptor(at: path)
        let server = try start(
            withDescriptor: number, command, logs: "listening at \(path)")
        try connect().kill()
        try connect()
        #expect(try server.terminate() == 0)
        #expect(hasSocketFile)
    }

    private func listeningDescriptor(at path: String) throws -> OwnedDescriptor {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let descriptor = OwnedDescriptor(
            owning: try systemCall {
                Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            })
        let number = descriptor.rawValue
        _ = try withUnsafePointer(to: &address) { pointer in
            try pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
                try systemCall {
                    bind(number, generic, socklen_t(MemoryLayout<sockaddr_un>.size))
                }
            }
        }
        _ = try systemCall { listen(number, 8) }
        return descriptor
    }

    @Test func `a thousand clients leak no descriptor and no mapping`() throws {
        let server = try RunningServer(folder: folder)
        let memory = try SharedMemory(size: 1 << 20)
        try connect().kill()
        try server.waitUntilClientsHaveDisconnected()
        let before = try server.openDescriptors()
        for round in 0..<1000 {
            let client = CloudHypervisorClient(
                wire: try WireClient(path: socket),
                memory: [.init(descriptor: memory.descriptor, address: 0, size: 1 << 20)])
            try client.start()
            try client.enableMSIX()
            if round % 3 == 0 {
                // The client crashes after half a message with descriptors.
                let message = WireMessage(
                    id: 1, command: WireMessage.Command.dmaMap,
                    payload: WireMessage.dmaMap(flags: 3, offset: 0, address: 1 << 30, size: 4096))
                try client.wire.send(
                    Array(message.bytes[..<20]), descriptors: [memory.descriptor])
            }
            client.kill()
        }
        try server.waitUntilClientsHaveDisconnected()
        #expect(try server.openDescriptors() == before)
        #expect(try server.mappings() == 0)
        #expect(try server.terminate() == 0)
    }

    @Test func `an idle server sleeps`() throws {
        let server = try RunningServer(folder: folder)
        let client = try connect()
        try server.process.waitUntilAsleep()
        let before = server.process.processorTime
        // No wait for an event: nothing must happen in this time.
        try server.process.watch(for: .seconds(1))
        #expect(server.process.processorTime - before < .milliseconds(10))
        withExtendedLifetime(client) {}
    }
}

extension RunningServer {
    /// Waits until the server has handled the disconnect of every client and sleeps.
    fileprivate func waitUntilClientsHaveDisconnected() throws {
        try process.wait(for: "all clients to disconnect", within: .seconds(60)) {
            let connected = log.components(separatedBy: "client connected").count
            let disconnected = log.components(separatedBy: "client disconnected").count
            return disconnected == connected ? true : nil
        }
        try process.waitUntilAsleep()
    }
}
