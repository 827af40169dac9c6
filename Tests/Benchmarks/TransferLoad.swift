// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import RemoteGuest
import VFIOClient

/// The measurements of a run of commands or transfers.
struct Sample {
    var commands = 0
    var bytes = 0
    var time = Duration.zero
    /// The processor time of all threads of the program.
    var processorTime = Duration.zero
    /// The times from the doorbell write to the interrupt, in microseconds.
    var latencies: [Double] = []

    var megabytesPerSecond: Double { Double(bytes) / 1e6 / time.inSeconds }
    var commandsPerSecond: Double { Double(commands) / time.inSeconds }
    var microsecondsOfProcessor: Double {
        commands == 0 ? 0 : processorTime.inMicroseconds / Double(commands)
    }

    /// Measures a run.
    ///
    /// - Parameters:
    ///   - size: the number of bytes of a command.
    ///   - processorTime: returns the processor time used so far.
    ///   - body: runs commands and counts them; its second argument is the start time.
    static func measure(
        size: Int, processorTime: () -> Duration,
        _ body: (inout Sample, ContinuousClock.Instant) throws -> Void
    ) rethrows -> Sample {
        var sample = Sample()
        let used = processorTime()
        let start = ContinuousClock.now
        try body(&sample, start)
        sample.time = ContinuousClock.now - start
        sample.processorTime = processorTime() - used
        sample.bytes = sample.commands * size
        return sample
    }
}

/// The length of a run.
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

/// The part of a driver that runs transfers with the fewest register accesses: a doorbell write for
/// the enqueued transfers, and one acknowledgement of all events of an interrupt.
struct InterruptLoop {
    let driver: GuestDriver
    private let client: VMMClient

    init(_ driver: GuestDriver) throws {
        self.driver = driver
        guard let machine = driver.machine as? RemoteMachine else {
            throw BenchmarkError("the controller is not behind a socket")
        }
        client = machine.client
        // Discards the events and interrupts of the setup.
        driver.takeAll(after: .milliseconds(2))
    }

    func ring(_ endpoint: GuestEndpoint) throws {
        try client.writeRegister(
            UInt64(driver.registers.doorbells + endpoint.slot * 4),
            UInt32(endpoint.contextIndex))
    }

    /// Waits for an interrupt, and calls `body` with each event on its event ring.
    ///
    /// - Parameters:
    ///   - interrupter: the index of the interrupter.
    ///   - codes: completion codes besides Success that are accepted.
    func events(
        of interrupter: Int = 0, accepting codes: Set<GuestEvent.Code> = [],
        _ body: (GuestEvent) throws -> Void
    ) throws {
        guard try client.waitForInterrupt(interrupter) else {
            throw BenchmarkError("there was no interrupt in time")
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

    /// Rings the doorbell and waits for the completion of one transfer.
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
