// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Logging
import Loopback
import Platform
import Service
import TestKit
import VFIOClient

/// A control socket with devices, and a client that counts lines and answers.
final class ControlBench {
    /// The bound of docs/limits.md.
    private static let longestLine = ServiceLimits.controlLine

    private let loop = ControlLoop()
    private let server: Server
    private let devices: DeviceTable
    private let control: ControlServer
    private let folder: TemporaryFolder
    private var path: String { folder.file("control") }
    private var client: WireClient
    /// The number of lines that must be answered.
    private var lines = 0
    private var line: [UInt8] = []
    private var answers = 0
    private var received: [UInt8] = []
    /// The devices in the last list.
    private var listed: [ControlDevice] = []
    private var isClosed = false
    /// Whether the server may have closed the connection: the client was slow or sent no lines.
    private var isLate = false
    /// A pipe whose write end is sent to the server.
    private let pipe: TestPipe

    init() throws {
        pipe = try TestPipe()
        folder = try TemporaryFolder()
        server = Server(loop: try EpollLoop(), logger: .silent)
        devices = DeviceTable(
            catalog: BackendCatalog(ControlBackend.self, LoopbackBackend.self), server: server,
            loop: loop, logger: .silent)
        control = try ControlServer(
            listener: ListeningSocket(bindingTo: folder.file("control")), server: server,
            devices: devices,
            loop: loop, logger: .silent)
        client = try WireClient(path: folder.file("control"))
    }

    // MARK: - The client

    func send(_ bytes: [UInt8], descriptors: Int = 0) throws {
        var attached = [CInt](repeating: pipe.writeNumber, count: descriptors)
        var rest = bytes[...]
        for _ in 0..<200 where !rest.isEmpty && !isClosed {
            if let sent = try? client.sendSome(Array(rest), descriptors: attached) {
                count(rest.prefix(sent))
                rest = rest.dropFirst(sent)
                attached = []
            }
            try runUntilIdle()
        }
    }

    private func count(_ bytes: ArraySlice<UInt8>) {
        for (index, part) in bytes.split(separator: 10, omittingEmptySubsequences: false)
            .enumerated()
        {
            if index > 0 {
                lines += 1
                line = []
            }
            line += part
            if line.count > Self.longestLine { isLate = true }
        }
    }

    private func close() {
        client.close()
        isClosed = true
    }

    func reconnect() throws {
        close()
        try runUntilIdle()
        for backend in loop.backends { backend.finish() }
        try runUntilIdle()
        client = try WireClient(path: path)
        (lines, answers, line, received) = (0, 0, [], [])
        (isClosed, isLate) = (false, false)
        try runUntilIdle()
    }

    func finishOne(_ index: Int) {
        let backends = loop.backends
        if backends.indices.contains(index) { backends[index].finish() }
    }

    func disconnect(_ index: Int) {
        let backends = loop.backends
        if backends.indices.contains(index) { backends[index].disconnect() }
    }

    func pass(_ duration: Duration) throws {
        // An incomplete line ends the connection.
        if !line.isEmpty { isLate = true }
        loop.pass(duration)
        try runUntilIdle()
    }

    // MARK: - The server

    private func runUntilIdle() throws {
        var turns = 0
        while loop.turn() {
            turns += 1
            try require(turns < 10_000, "the control socket never becomes idle")
        }
        try receive()
    }

    private func receive() throws {
        while !isClosed, let bytes = try client.receiveSome(4096) {
            isClosed = bytes.isEmpty
            received += bytes
        }
        while let end = received.firstIndex(of: 10) {
            let line = Array(received[..<end])
            received.removeFirst(end + 1)
            answers += 1
            guard let answer = ControlAnswer(line: line) else {
                throw Violation("no answer: \(String(decoding: line, as: UTF8.self))")
            }
            let saysWhy = answer.code != nil && answer.error?.isEmpty == false
            try require(answer.isGood != saysWhy, "neither good nor bad: \(answer)")
            try check(answer)
        }
    }

    private func check(_ answer: ControlAnswer) throws {
        try require(answers <= lines || isLate, "\(answers) answers to \(lines) lines")
        guard let devices = answer.devices else { return }
        listed = devices
        let ids = Set(devices.map(\.id))
        try require(ids.count == devices.count, "two devices have one id: \(devices)")
        try require(devices.count <= ServiceLimits.devices, "\(devices.count) devices")
    }

    // MARK: - The end

    /// Checks that all lines are answered, and that a new client can detach every device.
    func finish() throws {
        try finishAll { lines == answers || isClosed }
        try require(lines == answers || isLate, "\(answers) answers to \(lines) lines")
        close()
        try runUntilIdle()
        client = try WireClient(path: path)
        (lines, answers, line, received) = (0, 0, [], [])
        (isClosed, isLate) = (false, false)
        try list()
        for device in listed {
            try send(Array(#"{"request":"detach","id":"\#(device.id)"}"#.utf8) + [10])
        }
        try finishAll { lines == answers }
        try list()
        try require(lines == answers, "\(answers) answers to \(lines) detaches")
        try require(listed.isEmpty, "left: \(listed)")
        try require(loop.backends.allSatisfy { $0.stopCount <= 1 }, "a backend is stopped twice")
        close()
        try runUntilDisconnected()
        loop.forget()
        try require(pipe.areCopiesClosed(), "a descriptor of the client is still open")
    }

    private func list() throws { try send(Array(#"{"request":"list"}"#.utf8) + [10]) }

    private func finishAll(until isDone: () -> Bool) throws {
        // The sockets' buffers hold only a part of all answers.
        var rounds = 0
        while !isDone(), rounds < 200 {
            let before = answers
            for backend in loop.backends { backend.finish() }
            try runUntilIdle()
            rounds = answers > before ? 0 : rounds + 1
        }
        for backend in loop.backends { backend.finish() }
        try runUntilIdle()
    }

    private func runUntilDisconnected() throws {
        let isDisconnected = holdsEventually {
            _ = loop.turn()
            return control.clientCount == 0
        }
        try require(isDisconnected, "a disconnected client is still connected")
    }
}
