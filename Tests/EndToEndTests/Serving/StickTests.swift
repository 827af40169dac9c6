// SPDX-License-Identifier: Apache-2.0

import Foundation
import GuestKit
import RemoteGuest
import TestKit
import Testing
import VFIOClient
import VMKit

/// A guest's driver uses an image file through the built program, a real socket and each kind of
/// VMM. The guest's data and the file must be the same.
struct StickTests {
    private let folder: TemporaryFolder
    private let image: String
    private let contents: [UInt8]
    private var socket: String { folder.file("socket") }
    private var specification: String { "storage:file=\(image)" }

    init() throws {
        folder = try TemporaryFolder()
        image = folder.file("stick.img")
        contents = noise(1 << 20, seed: 1)
        try Data(contents).write(to: URL(filePath: image))
    }

    private func fileContents() throws -> [UInt8] {
        [UInt8](try Data(contentsOf: URL(filePath: image)))
    }

    /// Starts a guest's driver.
    private func boot(_ vmm: VMMKind = .cloudHypervisor) throws -> GuestDriver {
        let machine = try vmm.start(memory: GuestRAM(), wire: WireClient(path: socket))
        var options = GuestDriver.Options()
        options.waitsForInterrupts = true
        let driver = GuestDriver(machine, options)
        try driver.start()
        return driver
    }

    private func stick(_ vmm: VMMKind = .cloudHypervisor) throws -> GuestStick {
        try GuestStick(boot(vmm))
    }

    @Test("the guest reads the file", arguments: VMMKind.allCases)
    func reading(vmm: VMMKind) throws {
        let server = try RunningServer(devices: [specification], folder: folder)
        let stick = try stick(vmm)
        #expect(try stick.blockCount() == contents.count / 512)
        #expect(try stick.read(block: 0, count: contents.count / 512) == contents)
        #expect(try stick.read(block: 77, count: 3) == Array(contents[77 * 512..<80 * 512]))
        #expect(stick.driver.memory.damagedCanaries().isEmpty)
        #expect(try server.terminate() == 0)
    }

    @Test("data that the guest has written and flushed is in the file", arguments: VMMKind.allCases)
    func writing(vmm: VMMKind) throws {
        let server = try RunningServer(devices: [specification], folder: folder)
        let stick = try stick(vmm)
        _ = try stick.blockCount()
        let new = noise(300 * 512, seed: 2)
        try stick.write(new, block: 5)
        try stick.synchronize()
        // The server cannot write anything after this.
        server.process.kill()
        var expected = contents
        expected.replaceSubrange(5 * 512..<305 * 512, with: new)
        #expect(try fileContents() == expected)
    }

    @Test func `a stick on a SuperSpeed port has the same data`() throws {
        let server = try RunningServer(devices: ["\(specification),speed=super"], folder: folder)
        let stick = try stick()
        #expect(try stick.readAll() == contents)
        #expect(try server.terminate() == 0)
    }

    @Test func `several sticks have their own data`() throws {
        let other = folder.file("other.img")
        let otherContents = noise(64 * 512, seed: 3)
        try Data(otherContents).write(to: URL(filePath: other))
        let server = try RunningServer(
            devices: [specification, "storage:file=\(other)"], folder: folder)
        let driver = try boot()
        let first = try GuestStick(driver)
        let second = try GuestStick(driver)
        #expect(try first.readAll() == contents)
        #expect(try second.readAll() == otherContents)
        #expect(try server.terminate() == 0)
    }

    @Test func `flushed data and the stick survive a killed VMM`() throws {
        let server = try RunningServer(devices: [specification], folder: folder)
        let first = try stick()
        _ = try first.blockCount()
        let flushed = noise(64 * 512, seed: 4)
        try first.write(flushed, block: 0)
        try first.synchronize()
        // The VMM is killed between two transfers of the guest.
        let machine = try #require(first.driver.machine as? RemoteMachine)
        machine.client.kill()

        let second = try stick()
        var expected = contents
        expected.replaceSubrange(0..<flushed.count, with: flushed)
        #expect(try second.readAll() == expected)
        #expect(try server.terminate() == 0)
    }

    @Test func `one server serves one guest after the other`() throws {
        let server = try RunningServer(devices: [specification], folder: folder)
        for round in 0..<10 {
            let vmm = VMMKind.allCases[round % VMMKind.allCases.count]
            let stick = try stick(vmm)
            _ = try stick.blockCount()
            #expect(try stick.read(block: round, count: 8).count == 8 * 512)
            try #require(stick.driver.machine as? RemoteMachine).client.kill()
        }
        #expect(try server.terminate() == 0)
    }

    @Test func `an image that another server uses is refused`() throws {
        let server = try RunningServer(devices: [specification], folder: folder)
        let second = try runProgram(
            "--socket-path", folder.file("second"), "--device", specification)
        #expect(second.status == 1)
        #expect(second.errors.contains("stick.img"))
        #expect(try server.terminate() == 0)
        let third = try RunningServer(devices: [specification], folder: folder)
        #expect(try third.terminate() == 0)
    }

    @Test func `a write-protected stick is read and not written`() throws {
        let server = try RunningServer(devices: ["\(specification),readonly"], folder: folder)
        let stick = try stick()
        _ = try stick.blockCount()
        #expect(throws: GuestStick.Failure.self) {
            try stick.write(noise(512, seed: 5), block: 0)
        }
        #expect(try stick.read(block: 0, count: 1) == Array(contents[..<512]))
        #expect(try server.terminate() == 0)
        #expect(try fileContents() == contents)
    }
}

/// Bytes without a pattern, the same for the same seed.
private func noise(_ count: Int, seed: UInt64) -> [UInt8] {
    var generator = SplitMix64(seed: seed)
    return (0..<count).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
}
