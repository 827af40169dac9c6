// SPDX-License-Identifier: Apache-2.0

/// The microframe clock behind MFINDEX (xHCI 4.14.2, 5.5.1): one count for each 125 µs that the
/// controller runs.
///
/// The register shows the lowest 14 bits; the count itself never wraps.
struct MicroframeClock {
    static let microframe = Duration.microseconds(125)
    /// Microframes from one wrap of MFINDEX to the next.
    static let indexPeriod: Int64 = 1 << 14

    /// Microframes counted in earlier runs of the controller.
    private var countAtStart: Int64 = 0
    /// The time at which the controller last started to run; `nil` while it is halted.
    private var startTime: Duration?

    /// The microframes counted until `now`.
    func count(now: Duration) -> Int64 {
        guard let startTime else { return countAtStart }
        return countAtStart &+ Self.microframes(in: now - startTime)
    }

    /// The value of MFINDEX.
    func index(now: Duration) -> UInt32 { UInt32(count(now: now) % Self.indexPeriod) }

    /// The time at which MFINDEX wraps next; `nil` while the controller is halted.
    func nextWrap(now: Duration) -> Duration? {
        time(of: (count(now: now) / Self.indexPeriod + 1) * Self.indexPeriod)
    }

    /// The time at which the clock reaches a count; `nil` while the controller is halted.
    func time(of count: Int64) -> Duration? {
        startTime.map { $0 + Self.microframe * Int(count &- countAtStart) }
    }

    private static func microframes(in time: Duration) -> Int64 {
        guard time > .zero else { return 0 }
        let (seconds, attoseconds) = time.components
        return seconds &* 8000 &+ attoseconds / 125_000_000_000_000
    }

    mutating func start(now: Duration) { startTime = startTime ?? now }

    mutating func stop(now: Duration) {
        countAtStart = count(now: now)
        startTime = nil
    }
}
