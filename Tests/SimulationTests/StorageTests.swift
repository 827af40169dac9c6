// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Foundation
import GuestKit
import Logging
import MassStorage
import Testing
import XHCI

/// The stick behind the controller, in one process: a guest's driver writes and reads blocks by the
/// dice, and a model says what must be on the image.
struct StorageTests {
    private static let blocks = 4096

    private static func image() throws -> URL {
        let url = FileManager.default.temporaryDirectory.appending(
            path: "stick-\(UUID().uuidString).img")
        try Data(count: blocks * GuestStick.blockSize).write(to: url)
        return url
    }

    @Test(arguments: SimulatedMachine.MemoryKind.allCases, ["high", "super"])
    func `a stick keeps what is written`(
        kind: SimulatedMachine.MemoryKind, speed: String
    ) throws {
        let url = try Self.image()
        defer { try? FileManager.default.removeItem(at: url) }
        var options = GuestDriver.Options()
        options.waitsForInterrupts = true
        options.moderationInterval = 160
        let machine = try SimulatedMachine(kind)
        let driver = GuestDriver(machine, options)
        let backend = try StorageBackend(
            DeviceSpecification(parsing: "storage:file=\(url.path),speed=\(speed)"),
            context: BackendContext(
                loop: machine.loop,
                logger: Logger(label: "storage") { _ in SwiftLogNoOpLogHandler() }))
        try backend.start(on: machine.controller)

        var random = SplitMix64(seed: 11)
        var model = [UInt8](repeating: 0, count: Self.blocks * GuestStick.blockSize)
        for _ in 0..<2 {
            // The second time the controller is reset under a device that stays plugged in.
            try driver.start()
            let stick = try GuestStick(driver)
            #expect(try stick.blockCount() == Self.blocks)
            for _ in 0..<12 {
                let count = random.pick([1, 2, 7, 8, 64, 256, 300])
                let block = random.number(0...Self.blocks - count)
                let range =
                    block * GuestStick.blockSize..<(block + count) * GuestStick.blockSize
                if random.oneIn(2) {
                    let bytes = random.bytes(range.count)
                    try stick.write(bytes, block: block)
                    model.replaceSubrange(range, with: bytes)
                } else {
                    #expect(try stick.read(block: block, count: count) == Array(model[range]))
                }
            }
            try stick.synchronize()
        }
        backend.stop()
        #expect(try [UInt8](Data(contentsOf: url)) == model)
        #expect(machine.memory.damagedCanaries().isEmpty)
        #expect(!machine.isSpinning)
    }
}
