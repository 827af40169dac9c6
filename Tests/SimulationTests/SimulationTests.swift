// SPDX-License-Identifier: Apache-2.0

import Foundation
import GuestKit
import Testing

/// Which seeds the simulations are run with.
///
/// `SEED=… swift test --filter Simulation` runs one seed again; `SIMULATION_SEEDS=…` sets how many
/// fixed ones are run, `SIMULATION_RANDOM_SEEDS=…` how many that differ from run to run.
enum SimulationSeeds {
    private static let environment = ProcessInfo.processInfo.environment

    /// - Parameter fixed: how many are run where the environment does not say.
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

/// Runs of ``Simulation`` by seed.
struct SimulationTests {
    private static let steps = 150

    @Test func `no seed breaks a promise`() throws {
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
        #expect(ended > 0, "the simulation does something")
    }

    @Test func `the same seed is the same run`() throws {
        func trace(_ seed: UInt64) throws -> [String] {
            let simulation = try Simulation(seed: seed)
            var trace: [String] = []
            let judge = simulation.driver.onEvent
            simulation.driver.onEvent = { event in
                trace.append("\(simulation.machine.now) \(event)")
                judge?(event)
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
