// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Foundation
import GuestKit
import Logging
import MassStorage
import TestKit
import Testing
import XHCI

/// The storage backend behind the controller: a guest's driver writes and reads random blocks, and
/// a model checks the contents of the image.
struct StorageTests {
    private static let blocks = 4096

    @Test func `reads return the data of the last write, and a flush writes the file`() throws {
        for seed in SimulationSeeds.drawn(fixed: 8) {
            do {
                try Self.run(seed: seed)
            } catch {
                Issue.record("SEED=\(seed): \(error)")
            }
        }
    }

    private static func run(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        // The low bits select memory and speed, so that few seeds cover all combinations.
        let kind: SimulatedMachine.MemoryKind = seed & 1 == 0 ? .local : .remote
        let speed = seed & 2 == 0 ? "high" : "super"
        let folder = try TemporaryFolder()
        let url = folder.url("stick.img")
        try Data(count: blocks * GuestStick.blockSize).write(to: url)
        var options = GuestDriver.Options()
        options.waitsForInterrupts = random.oneIn(2)
        options.moderationInterval = random.pick([0, 160])
        let machine = try SimulatedMachine(kind)
        let driver = GuestDriver(machine, options)
        let backend = try StorageBackend(
            DeviceSpecification(parsing: "storage:file=\(url.path),speed=\(speed)"),
            context: BackendContext(loop: machine.loop, logger: .silent))
        machine.isWorkerBusy = { [unowned backend] in !backend.isIdle }
        try backend.start(on: machine.controller)
        defer { try? backend.stop() }

        var model = [UInt8](repeating: 0, count: blocks * GuestStick.blockSize)
        for _ in 0..<2 {
            // The second start resets the controller; the device stays attached.
            try driver.start()
            let stick = try GuestStick(driver)
            #expect(try stick.blockCount() == blocks, "SEED=\(seed)")
            for _ in 0..<12 {
                let count = random.pick([1, 2, 7, 8, 64, 256, 300])
                let block = random.number(0...blocks - count)
                let range =
                    block * GuestStick.blockSize..<(block + count) * GuestStick.blockSize
                if random.oneIn(2) {
                    let bytes = random.bytes(range.count)
                    try stick.write(bytes, block: block)
                    model.replaceSubrange(range, with: bytes)
                } else {
                    let bytes = try stick.read(block: block, count: count)
                    #expect(bytes == Array(model[range]), "SEED=\(seed)")
                }
            }
            try stick.synchronize()
            // Flushed data are in the file.
            #expect(try [UInt8](Data(contentsOf: url)) == model, "SEED=\(seed)")
        }
        #expect(machine.memory.damagedCanaries().isEmpty, "SEED=\(seed)")
        #expect(!machine.isSpinning, "SEED=\(seed)")
    }
}
