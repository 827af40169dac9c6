// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Glibc
import Logging
import Platform
import SystemPackage
import TestKit
import Testing
import USB

@testable import MassStorage

/// Medium changes by the operator while a guest uses the device.
@Suite struct MediumExchangeTests {
    private let first = FakeImage(byteCount: 64 * 512)
    private let second = FakeImage(byteCount: 32 * 512)
    private let host: BulkOnlyHost

    init() throws {
        first.fill(at: 0, Array(repeating: 1, count: 64 * 512))
        second.fill(at: 0, Array(repeating: 2, count: 32 * 512))
        host = try BulkOnlyHost(first)
    }

    /// A medium change in progress.
    private final class Change {
        private(set) var isDone = false
        private(set) var error: Errno?

        init(_ device: MassStorageDevice, to image: FakeImage?, force: Bool = false) {
            device.changeMedium(to: image, force: force) { [self] error in
                isDone = true
                self.error = error
            }
        }
    }

    private func change(to image: FakeImage?) -> Change {
        let change = Change(host.device, to: image)
        host.waitUntilIdle()
        return change
    }

    private func read(_ block: UInt8 = 0, count: UInt8 = 1) -> BulkOnlyHost.Result {
        host.run([0x28, 0, 0, 0, 0, block, 0, 0, count, 0], in: Int(count) * 512)
    }

    private func write(_ byte: UInt8) -> BulkOnlyHost.Result {
        host.run(
            [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], out: Array(repeating: byte, count: 512))
    }

    /// Sense key, ASC and ASCQ of REQUEST SENSE.
    private func sense() -> [UInt8] {
        let data = host.run([3, 0, 0, 0, 18, 0], in: 18).data
        return data.count == 18 ? [data[2], data[12], data[13]] : []
    }

    private var testUnitReady: UInt8? { host.run([0, 0, 0, 0, 0, 0]).status }

    @Test func `a new medium establishes one unit attention and has its own size`() {
        #expect(read().data.first == 1)
        let change = change(to: second)
        #expect(change.isDone && change.error == nil)
        #expect(testUnitReady == 1)
        #expect(sense() == [6, 0x28, 0])
        #expect(testUnitReady == 0)
        #expect(host.run([0x25] + Array(repeating: 0, count: 9), in: 8).data[3] == 31)
        #expect(read().data == Array(repeating: 2, count: 512))
        #expect(read(40).status == 1)
        #expect(sense() == [5, 0x21, 0])
    }

    @Test func `the old medium is flushed before it is removed`() {
        #expect(write(7).status == 0)
        _ = change(to: second)
        #expect(first.flushCount == 1)
        #expect(first.bytes(at: 0, count: 512) == Array(repeating: 7, count: 512))
        _ = testUnitReady
        #expect(write(8).status == 0)
        #expect(first.bytes(at: 0, count: 1) == [7])
        #expect(second.bytes(at: 0, count: 1) == [8])
    }

    @Test func `without a medium commands report it, also after resets and load attempts`() {
        _ = change(to: nil)
        for _ in 0..<2 {
            #expect(testUnitReady == 1)
            #expect(sense() == [2, 0x3a, 0])
            #expect(read().status == 1)
            #expect(write(1).status == 1)
            #expect(host.run([0x1b, 0, 0, 0, 3, 0]).status == 1, "START with LOEJ")
            #expect(sense() == [2, 0x3a, 0])
            #expect(host.run([0x12, 0, 0, 0, 36, 0], in: 36).status == 0, "INQUIRY")
            host.device.reset()
            host.setConfiguration(1)
        }
        _ = change(to: second)
        #expect(testUnitReady == 1)
        #expect(sense() == [6, 0x28, 0])
        #expect(read().data.first == 2)
    }

    @Test func `write protection ends with the write-protected medium`() throws {
        let protected = FakeImage(byteCount: 8 * 512, readOnly: true)
        _ = change(to: protected)
        _ = testUnitReady
        #expect(write(1).status == 1)
        #expect(sense() == [7, 0x27, 0])
        #expect(host.run([0x1a, 0, 0x3f, 0, 4, 0], in: 4).data[2] & 0x80 != 0)
        _ = change(to: second)
        _ = testUnitReady
        #expect(write(1).status == 0)
        #expect(protected.flushCount == 0)
    }

    @Test
    func
        `a medium change fails a command in its data stage`()
    {
        let tag: UInt32 = 77
        let command = host.submitOut(
            host.wrapper(
                [0x2a, 0, 0, 0, 0, 0, 0, 0, 4, 0], length: 2048, direction: .out, tag: tag))
        #expect(host.wait(command)?.status == .completed)
        let data = host.submitOut(Array(repeating: 9, count: 1024))
        #expect(host.wait(data)?.status == .completed)
        _ = change(to: second)
        let late = host.submitOut(Array(repeating: 9, count: 1024))
        #expect(host.wait(late)?.status == .stalled)
        host.clearHalt(MassStorageDescriptors.outEndpoint)
        let status = host.submitIn(13)
        #expect(host.wait(status)?.status == .completed)
        #expect(host.bytes(status)[12] == 1)
        #expect(second.bytes(at: 0, count: 1) == [2], "no part of the write reached the new medium")
        _ = sense()
        _ = testUnitReady
        #expect(read().data.first == 2)
    }

    @Test
    func
        `a medium change waits for the worker's job and fails the rest of the command`()
    {
        first.set { $0.nonblocking = .wouldBlock }
        first.shutGate()
        let command = host.submitOut(
            host.wrapper(
                [0x28, 0, 0, 0, 0, 0, 0, 0, 4, 0], length: 2048, direction: .in, tag: 5))
        #expect(host.wait(command)?.status == .completed)
        let data = host.submitIn(1024)
        let change = Change(host.device, to: second)
        #expect(!change.isDone && !host.isDone(data))
        first.openGate()
        host.waitUntilIdle()
        #expect(change.isDone)
        #expect(host.port.completions[data]?.status == .completed)
        #expect(host.bytes(data) == Array(repeating: 1, count: 1024))
        let rest = host.submitIn(1024)
        #expect(host.wait(rest)?.status == .stalled)
        host.clearHalt(MassStorageDescriptors.inEndpoint)
        let status = host.submitIn(13)
        #expect(host.wait(status)?.status == .completed)
        #expect(host.bytes(status)[12] == 1)
    }

    @Test func `a medium whose flush fails stays, unless the change is forced`() {
        first.set { $0.fault = { $0 == .flush ? .ioError : nil } }
        let refused = change(to: second)
        #expect(refused.isDone && refused.error == .ioError)
        _ = testUnitReady
        #expect(read().data.first == 1)
        // The error was reported to the operator; it must be reported to the guest too.
        first.set { $0.fault = { _ in nil } }
        let flush = [0x35] + [UInt8](repeating: 0, count: 9)
        #expect(host.run(flush).status == 1)
        #expect(host.run(flush).status == 0)
        first.set { $0.fault = { $0 == .flush ? .ioError : nil } }
        let forced = Change(host.device, to: second, force: true)
        host.waitUntilIdle()
        #expect(forced.isDone && forced.error == .ioError)
        _ = testUnitReady
        #expect(read().data.first == 2)
    }

    @Test func `a medium change completes after the device is detached`() {
        first.shutGate()
        let change = Change(host.device, to: second)
        host.device.detached()
        first.openGate()
        host.waitUntilIdle()
        #expect(change.isDone)
        #expect(first.flushCount == 1)
    }
}

/// Requests to the backend: insert and eject.
@Suite struct MediumRequestTests {
    private let bus = StorageBackendTests.FakeBus()
    private let loop: EpollLoop
    private let file: TemporaryFile
    private let other: TemporaryFile

    init() throws {
        loop = try EpollLoop()
        file = try TemporaryFile(size: 1 << 16)
        other = try TemporaryFile(size: 1 << 15)
    }

    private func make(_ text: String) throws -> StorageBackend {
        let backend = try StorageBackend(
            DeviceSpecification(parsing: text),
            context: BackendContext(loop: loop, logger: .silent))
        try backend.start(on: bus)
        return backend
    }

    /// The error of an operation; empty if it succeeds.
    private func answer(
        _ backend: StorageBackend, _ name: String, _ arguments: [String: ArgumentValue] = [:]
    ) throws -> String {
        let operation = try #require(StorageBackend.operations.first { $0.name == name })
        let call = try OperationCall(operation, arguments, for: StorageBackend.self)
        var answer: String?
        backend.execute(call) { answer = $0?.reason ?? "" }
        let deadline = loop.now + .seconds(60)
        while answer == nil, loop.now < deadline { try loop.turn(until: deadline) }
        return try #require(answer)
    }

    private func medium(_ text: String) throws -> DeviceSpecification {
        try DeviceSpecification(parsing: "storage:\(text)")
    }

    @Test func `an image is unlocked when another one is inserted or it is ejected`() throws {
        let backend = try make("storage:file=\(file.path)")
        #expect(
            try answer(backend, "insert", ["spec": .text("file=\(other.path),readonly")]) == "")
        #expect(bus.device?.summary == "storage \(other.path)")
        try eventually { _ = try FileImage(path: file.path, readOnly: false, cache: .writeback) }
        #expect(try answer(backend, "eject") == "")
        #expect(bus.device?.summary == "storage without a medium")
        try eventually { _ = try FileImage(path: other.path, readOnly: false, cache: .writeback) }
        try backend.stop()
    }

    @Test func `invalid requests are refused, and the medium stays`() throws {
        let backend = try make("storage:file=\(file.path)")
        let insert = { (text: String) in
            try answer(backend, "insert", ["spec": .text(text)])
        }
        #expect(try insert("readonly").contains("lacks 'file=PATH'"))
        #expect(try insert("file=\(other.path),serial=1").contains("there are: file, readonly"))
        #expect(try insert("file=\(file.path)").contains("in use"))
        #expect(try insert("file=/nowhere").contains("there is no '/nowhere'"))
        #expect(bus.device?.summary == "storage \(file.path)")
        try backend.stop()
        let fixed = try eventually { try make("storage:file=\(other.path),removable=off") }
        #expect(try answer(fixed, "eject", ["force": .flag(true)]).contains("removable=off"))
        try fixed.stop()
    }

    @Test func `a received descriptor replaces the file, with its access mode`() throws {
        func attach(_ flags: CInt, _ more: String = "") throws -> String {
            // A process that another test has forked may hold the lock of the previous attempt.
            try eventually {
                let answer = try attachOnce(flags, more)
                try #require(!answer.contains("in use"))
                return answer
            }
        }
        func attachOnce(_ flags: CInt, _ more: String) throws -> String {
            let number = open(file.path, flags | O_CLOEXEC)
            let context = BackendContext(
                loop: loop, logger: .silent,
                descriptor: ReceivedDescriptor(
                    OwnedDescriptor(owning: try #require(number >= 0 ? number : nil))))
            do throws(BackendError) {
                // The path does not exist where the server runs.
                let backend = try StorageBackend(
                    DeviceSpecification(parsing: "storage:file=/elsewhere\(more)"),
                    context: context)
                try backend.start(on: bus)
                defer { try? backend.stop() }
                return bus.device?.summary ?? ""
            } catch {
                return error.reason
            }
        }
        #expect(try attach(O_RDWR) == "storage /elsewhere")
        #expect(try attach(O_RDONLY, ",readonly") == "storage /elsewhere")
        #expect(try attach(O_RDONLY).contains("without the right"))
        #expect(try attach(O_WRONLY).contains("without the right"))
        #expect(try attach(0o10000000, ",readonly").contains("without the right"), "O_PATH")
        #expect(try attach(O_RDWR | O_APPEND).contains("O_APPEND"))
    }

    @Test func `a received descriptor of another kind of file is refused`() throws {
        for path in ["/dev/null", "/tmp"] {
            let number = open(path, O_RDONLY | O_CLOEXEC)
            let context = BackendContext(
                loop: loop, logger: .silent,
                descriptor: ReceivedDescriptor(OwnedDescriptor(owning: number)))
            let error = #expect(throws: BackendError.self) {
                try StorageBackend(medium("file=x,readonly"), context: context)
            }
            #expect(error?.reason.contains("neither a file nor") == true)
        }
    }

    @Test func `an image is opened for a server with its canonical path`() throws {
        func open(_ path: String) throws(BackendError) -> String? {
            let specification = try DeviceSpecification(parsing: "storage:file=\(path),readonly")
            guard let opened = try StorageBackend.open(specification) else { return nil }
            return opened.specification.text
        }
        #expect(try open(file.path) == "storage:file=\(file.path),readonly")
        #expect(throws: BackendError.self) { try open("/nowhere") }
    }
}
