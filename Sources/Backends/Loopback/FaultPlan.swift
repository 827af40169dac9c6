// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The rules of a device with how far each has come. Equal rules and transfers make equal faults.
struct FaultPlan {
    /// A rule that takes effect.
    struct Fault {
        var rule: FaultRule
        /// The transfer at its place since the rule was made, from 1.
        var transfer: Int
        /// How often the rule has taken effect, this time included.
        var count: Int
    }

    private struct Entry {
        let rule: FaultRule
        var seen = 0
        var bytes: UInt64 = 0
        var fired = 0
        var generator: SplitMix64

        init(_ rule: FaultRule) {
            self.rule = rule
            generator = SplitMix64(seed: rule.seed)
        }
    }

    private var entries: [Entry]
    /// A bit for each pipe that rules are about.
    private let concerned: UInt8

    init(_ rules: [FaultRule] = []) {
        entries = rules.map { Entry($0) }
        concerned = rules.reduce(0) { bits, rule in
            if case .pipe(let pipe) = rule.target { return bits | 1 << UInt8(pipe.rawValue) }
            return bits
        }
    }

    /// What happens to the next transfer of a pipe. Each is asked about once.
    mutating func fault(for transfer: Transfer, at pipe: Pipe) -> Fault? {
        guard concerned >> UInt8(pipe.rawValue) & 1 != 0 else { return nil }
        return next { $0.target == .pipe(pipe) && $0.concerns(transfer) }
    }

    /// What happens to the next answer with a descriptor.
    mutating func fault(for subject: DescriptorFault.Subject) -> Fault? {
        next { $0.target == .descriptor(subject) }
    }

    /// The first rule that is about this one and due; all that are about it count it.
    private mutating func next(where matches: (FaultRule) -> Bool) -> Fault? {
        var fault: Fault?
        for index in entries.indices where matches(entries[index].rule) {
            let rule = entries[index].rule
            let isDue =
                entries[index].seen >= rule.after && entries[index].bytes >= rule.afterBytes
                && entries[index].fired < rule.times ?? .max
            entries[index].seen &+= 1
            guard isDue, fault == nil else { continue }
            if rule.probability < 1, entries[index].generator.fraction() >= rule.probability {
                continue
            }
            entries[index].fired &+= 1
            fault = Fault(
                rule: rule, transfer: entries[index].seen, count: entries[index].fired)
        }
        return fault
    }

    /// Bytes were moved at a pipe.
    mutating func count(_ bytes: Int, at pipe: Pipe) {
        guard concerned >> UInt8(pipe.rawValue) & 1 != 0 else { return }
        for index in entries.indices where entries[index].rule.target == .pipe(pipe) {
            entries[index].bytes &+= UInt64(clamping: bytes)
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014): numbers that
/// depend on the seed alone.
struct SplitMix64 {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }

    /// From 0 up to, but not including, 1.
    mutating func fraction() -> Double { Double(next() >> 11) * 0x1p-53 }
}
