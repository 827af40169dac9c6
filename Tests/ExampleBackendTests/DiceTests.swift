// SPDX-License-Identifier: Apache-2.0

import BackendKit
import ExampleBackend
import Foundation
import GuestKit
import Logging
import TestKit
import Testing
import USB

/// The die of docs/writing-a-backend.md, used by a guest through the real controller.
@Suite struct DiceTests {
    let guest: Guest

    init() throws { guest = try Guest() }

    private func start(_ text: String) throws -> any DeviceBackend {
        let context = BackendContext(loop: guest.machine.loop, logger: .silent)
        let backend = try BackendCatalog(DiceBackend.self).makeBackend(text, context: context)
        try backend.start(on: guest.machine.controller)
        return backend
    }

    private func configure(_ slot: GuestSlot) throws -> GuestEndpoint {
        var wanted = GuestEndpointConfiguration.interruptIn(1)
        wanted.maxPacketSize = 1
        let endpoint = try slot.configureOne(wanted)
        try slot.control(SetupPacket(requestType: 0, request: 9, value: 1, index: 0, length: 0))
        return endpoint
    }

    @Test func `a guest sees throws of the die, one a second`() throws {
        let backend = try start("dice:sides=3")
        let endpoint = try configure(guest.driver.addressNewDevice())
        var seen: Set<UInt8> = []
        let begin = guest.machine.now
        for _ in 0..<60 { seen.formUnion(try endpoint.receive(1)) }
        #expect(seen == [1, 2, 3])
        #expect((59...61).contains((guest.machine.now - begin).components.seconds))
        withExtendedLifetime(backend) {}
    }

    @Test func `the die answers the request for its number of sides, and no other`() throws {
        let backend = try start("dice:sides=20")
        let slot = try guest.driver.addressNewDevice()
        let question = SetupPacket(requestType: 0xc0, request: 1, value: 0, index: 0, length: 1)
        #expect(try slot.control(question) == [20])
        var other = question
        other.request = 2
        #expect(throws: (any Error).self) { try slot.control(other) }
        withExtendedLifetime(backend) {}
    }

    @Test func `a transfer that waits can be cancelled`() throws {
        let backend = try start("dice")
        let endpoint = try configure(guest.driver.addressNewDevice())
        endpoint.submit(endpoint.trbs(guest.memory.allocate(1), 1))
        #expect(try endpoint.stop().code == .success)
        #expect(guest.answersCommands)
        withExtendedLifetime(backend) {}
    }

    @Test func `a halted endpoint stalls until the halt is cleared`() throws {
        let backend = try start("dice")
        let slot = try guest.driver.addressNewDevice()
        let endpoint = try configure(slot)
        var halt = SetupPacket(requestType: 2, request: 3, value: 0, index: 0x81, length: 0)
        try slot.control(halt)
        #expect(throws: (any Error).self) { try endpoint.receive(1) }
        try endpoint.reset()
        try endpoint.setDequeuePointer()
        halt.request = 1
        try slot.control(halt)
        #expect(try endpoint.receive(1).count == 1)
        withExtendedLifetime(backend) {}
    }

    @Test func `stopping the backend detaches the die`() throws {
        let backend = try start("dice")
        let slot = try guest.driver.addressNewDevice()
        try backend.stop()
        guest.machine.pass(.seconds(2))
        #expect(!guest.driver.port(slot.port).contains(.connected))
    }

    @Test func `wrong numbers of sides are refused with what is allowed`() {
        #expect(throws: BackendError("'sides=1' must be a number from 2 to 255")) {
            try start("dice:sides=1")
        }
    }

    @Test func `the guide shows this code`() throws {
        let shown = try codeBlocks(of: "docs/writing-a-backend.md")
        let code = try text("Tests/ExampleBackend/ExampleBackend.swift")
        #expect(shown.contains(code), "docs/writing-a-backend.md does not show the code as it is")
    }

    @Test func `the article "Your first device" shows parts of this code`() throws {
        let code = try text("Tests/ExampleBackend/ExampleBackend.swift")
        let article = "Sources/Framework/BackendKit/BackendKit.docc/YourFirstDevice.md"
        let blocks = try codeBlocks(of: article)
        #expect(!blocks.isEmpty)
        for block in blocks {
            #expect(code.contains(block), "\(article) has code that is not in the example")
        }
    }

    /// The contents of the Swift code blocks of a page.
    private func codeBlocks(of page: String) throws -> [String] {
        try text(page).components(separatedBy: "```swift\n").dropFirst()
            .compactMap { $0.components(separatedBy: "```").first }
    }

    private func text(_ path: String) throws -> String {
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent()
        return try String(contentsOf: root.appending(path: path), encoding: .utf8)
    }
}
