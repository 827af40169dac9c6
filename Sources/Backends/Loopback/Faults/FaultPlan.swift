// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The fault rules of a device with their counters. Equal rules and transfers give equal faults.
struct FaultPlan {
    /// A fault that a rule causes on a transfer.
    struct Fault {
        var rule: FaultRule
        /// The number of the transfer, counted from 1, among those that the rule applies to.
        var number: Int
        /// The number of faults that the rule has caused, including this one.
        var occurrence: Int
    }

    private struct Entry {
        let rule: FaultRule
        /// The number of transfers that the rule applied to.
        var seen = 0
        /// The number of bytes that the rule's endpoint has moved.
        var bytes: UInt64 = 0
        /// The number of faults that the rule has caused.
        var fired = 0
        var generator: SplitMix64

        init(_ rule: FaultRule) {
            self.rule = rule
            generator = SplitMix64(seed: rule.seed)
        }

        /// Whether the rule's conditions hold, except its probability.
        var isDue: Bool {
            seen >= rule.after && bytes >= rule.afterBytes && fired < rule.times ?? .max
        }
    }

    private var entries: [Entry]
    /// A bit for each pipe that has rules.
    private let pipesWithRules: UInt8

    init(_ rules: [FaultRule] = []) {
        entries = rules.map { Entry($0) }
        pipesWithRules = rules.reduce(0) { bits, rule in
            if case .pipe(let pipe) = rule.target { return bits | 1 << UInt8(pipe.rawValue) }
            return bits
        }
    }

    /// Returns the fault for the next transfer of a pipe; call it once for each transfer.
    mutating func fault(for transfer: Transfer, at pipe: Pipe) -> Fault? {
        guard hasRules(for: pipe) else { return nil }
        return nextFault { $0.target == .pipe(pipe) && $0.applies(to: transfer) }
    }

    /// Returns the fault for the next request for a descriptor; call it once for each request.
    mutating func fault(for subject: DescriptorFault.Subject) -> Fault? {
        nextFault { $0.target == .descriptor(subject) }
    }

    /// Adds the bytes that have moved at a pipe.
    mutating func count(_ bytes: Int, at pipe: Pipe) {
        guard hasRules(for: pipe) else { return }
        for index in entries.indices where entries[index].rule.target == .pipe(pipe) {
            entries[index].bytes &+= UInt64(clamping: bytes)
        }
    }

    private func hasRules(for pipe: Pipe) -> Bool {
        pipesWithRules >> UInt8(pipe.rawValue) & 1 != 0
    }

    /// Returns the fault of the first matching rule that is due. All matching rules count the
    /// transfer.
    private mutating func nextFault(where matches: (FaultRule) -> Bool) -> Fault? {
        var fault: Fault?
        for index in entries.indices where matches(entries[index].rule) {
            let rule = entries[index].rule
            let isDue = entries[index].isDue
            entries[index].seen &+= 1
            guard isDue, fault == nil else { continue }
            if rule.probability < 1, entries[index].generator.fraction() >= rule.probability {
                continue
            }
            entries[index].fired &+= 1
            fault = Fault(
                rule: rule, number: entries[index].seen, occurrence: entries[index].fired)
        }
        return fault
    }
}
