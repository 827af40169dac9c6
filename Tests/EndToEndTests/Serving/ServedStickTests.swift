// SPDX-License-Identifier: Apache-2.0

import Foundation
import GuestKit
import RemoteGuest
import Testing
import VFIOClient

/// A real stick that a server passes through to a client with Cloud Hypervisor's messages. VMTests
/// runs this suite in a guest that has a stick.
///
/// `USBVFIOD_SERVED_STICK` is the path of the server's socket. The test writes the stick's contents
/// to a file beside it.
@Suite(.enabled(if: servedStick != nil, "it needs a server with a USB stick; VMTests runs it"))
struct ServedStickTests {
    private let socket: String

    init() throws { socket = try #require(servedStick) }

    private func boot() throws -> GuestStick {
        let wire = try WireClient(path: socket)
        let machine = try VMMKind.cloudHypervisor.start(memory: GuestRAM(), wire: wire)
        var options = GuestDriver.Options()
        options.waitsForInterrupts = true
        let driver = GuestDriver(machine, options)
        try driver.start()
        return try GuestStick(driver)
    }

    @Test func `a stick is used, ejected, and used again after a reconnect`() throws {
        let stick = try boot()
        let contents = try stick.readAll()
        try Data(contents).write(to: URL(filePath: "\(socket).read"))
        let new = Array(contents[4096..<4096 + 300 * 512].reversed())
        try stick.write(new, block: 100)
        try stick.synchronize()
        let machine = try #require(stick.driver.machine as? RemoteMachine)
        try #require(machine.client as? CloudHypervisorClient).eject()
        #expect(machine.failure == nil)

        let again = try boot()
        var expected = contents
        expected.replaceSubrange(100 * 512..<400 * 512, with: new)
        #expect(try again.readAll() == expected)
        #expect(again.driver.memory.damagedCanaries().isEmpty)
    }
}

private let servedStick = ProcessInfo.processInfo.environment["USBVFIOD_SERVED_STICK"]
