// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import RemoteGuest
import VFIOClient

/// What a run of transfers took.
struct Sample {
    var commands = 0
    var bytes = 0
    var time = Duration.zero
    /// Of the program, all threads together.
    var processorTime = Duration.zero
    /// From before a doorbell is written to the interrupt, in microseconds.
    var latencies: [Double] = []

    var megabytesPerSecond: Double { Double(bytes) / 1e6 / time.inSeconds }
    var commandsPerSecond: Double { Double(commands) / time.inSeconds }
    var microsecondsOfProcessor: Double {
        commands == 0 ? 0 : processorTime.inMicroseconds / Double(commands)
    }
}

/// When a run is over.
enum Amount {
    case time(Duration)
    case commands(Int)

    func isReached(_ commands: Int, since start: ContinuousClock.Instant) -> Bool {
        switch self {
        case .time(let duration): ContinuousClock.now - start >= duration
        case .commands(let count): commands >= count
        }
    }
}

/// The part of a driver that runs while transfers do, with no more accesses than a driver needs: a
/// doorbell for what is given, and for each interrupt one acknowledgement of all its events.
struct InterruptLoop {
    let driver: GuestDriver
    private let client: VMMClient

    init(_ driver: GuestDriver) throws {
        self.driver = driver
        guard let machine = driver.machine as? RemoteMachine else {
            throw BenchmarkError("the guest's controller is not on a socket")
        }
        client = machine.client
        // Interrupts of the time before.
        driver.takeAll(after: .milliseconds(2))
    }

    func ring(_ endpoint: GuestEndpoint) throws {
        try client.writeRegister(
            UInt64(driver.registers.doorbells + endpoint.slot * 4),
            UInt32(endpoint.contextIndex))
    }

    /// Waits for an interrupt, and calls `body` with each event on the ring.
    ///
    /// - Parameters:
    ///   - interrupter: which one is waited for.
    ///   - codes: what events may say besides success.
    func events(
        of interrupter: Int = 0, accepting codes: Set<GuestEvent.Code> = [],
        _ body: (GuestEvent) throws -> Void
    ) throws {
        guard try client.waitForInterrupt(interrupter) else {
            throw BenchmarkError("no interrupt came")
        }
        let ring = driver.eventRings[interrupter]
        while let trb = ring.next() {
            let event = GuestEvent(trb, interrupter: interrupter)
            guard event.code == .success || codes.contains(event.code) else {
                throw BenchmarkError("a transfer ended with \(event)")
            }
            try body(event)
        }
        try client.writeRegister(
            UInt64(driver.registers.interrupter(interrupter) + 0x18), ring.dequeueRegister | 8)
    }

    /// Waits for the event of one transfer at an interrupter.
    func finish(
        _ endpoint: GuestEndpoint, interrupter: Int = 0, latencies: inout [Double]
    ) throws {
        let start = ContinuousClock.now
        try ring(endpoint)
        var isDone = false
        while !isDone {
            try events(of: interrupter) { _ in
                if !isDone { latencies.append((ContinuousClock.now - start).inMicroseconds) }
                isDone = true
            }
        }
    }
}
