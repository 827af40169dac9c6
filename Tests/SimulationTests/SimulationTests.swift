// SPDX-License-Identifier: Apache-2.0

import Foundation
import GuestKit
import Testing

/// The seeds of the simulations.
///
/// `SEED=… swift test --filter Simulation` runs one seed. `SIMULATION_SEEDS` is the number of fixed
/// seeds, `SIMULATION_RANDOM_SEEDS` the number of seeds that differ from run to run.
enum SimulationSeeds {
    private static let environment = ProcessInfo.processInfo.environment

    /// - Parameter fixed: the number of fixed seeds if the environment does not set it.
    static func drawn(fixed: Int = 60) -> [UInt64] {
        if let seed = environment["SEED"].flatMap({ UInt64($0) }) { return [seed] }
        let fixed = environment["SIMULATION_SEEDS"].flatMap { Int($0) } ?? fixed
        let fresh = environment["SIMULATION_RANDOM_SEEDS"].flatMap { Int($0) } ?? 0
        var random = SystemRandomNumberGenerator()
        let seeds = (0..<max(fresh, 0)).map { _ in
            UInt64.random(in: 1_000_000 ... .max, using: &random)
        }
        if !seeds.isEmpty { print("random seeds: \(seeds)") }
        return (0..<max(fixed, 0)).map { UInt64($0) } + seeds
    }
}

/// Runs ``Simulation`` with each seed.
struct SimulationTests {
    private static let steps = 150

    @Test func `no seed finds a violation`() throws {
        var ended = 0
        for seed in SimulationSeeds.drawn() {
            let simulation = try Simulation(seed: seed)
            do {
                try simulation.start()
                for _ in 0..<Self.steps where simulation.violations.isEmpty {
                    try simulation.step()
                }
                if simulation.violations.isEmpty { try simulation.finish() }
            } catch {
                Issue.record("SEED=\(seed): \(error)")
            }
            #expect(simulation.violations.isEmpty, "SEED=\(seed)")
            ended += simulation.endedCount
        }
        #expect(ended > 0, "no TD has ended")
    }

    @Test func `the same seed gives the same run`() throws {
        func trace(_ seed: UInt64) throws -> [String] {
            let simulation = try Simulation(seed: seed)
            var trace: [String] = []
            let check = simulation.driver.onEvent
            simulation.driver.onEvent = { event in
                trace.append("\(simulation.machine.now) \(event)")
                check?(event)
            }
            try simulation.start()
            for _ in 0..<Self.steps { try simulation.step() }
            return trace
        }
        let first = try trace(5)
        #expect(try trace(5) == first)
        #expect(!first.isEmpty)
    }
}
