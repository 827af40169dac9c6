// SPDX-License-Identifier: Apache-2.0

internal import USB

/// An error in a fault rule.
struct FaultRuleError: Error {
    var reason: String
}

/// The parser of one fault rule: the target, the fault, then `key=value` in any order.
struct FaultRuleParser {
    private static let pipes = [
        "control", "bulk-in", "bulk-out", "interrupt-in", "interrupt-out", "iso-in", "iso-out",
    ]
    private static let targets =
        (pipes + DescriptorFault.Subject.allCases.map(\.rawValue)).joined(separator: ", ")
        + " or an address such as 0x81"
    private static let actions = "stall, nak, slow, short, babble, error, corrupt, disconnect"
    private static let descriptorActions =
        DescriptorFault.allCases.map(\.rawValue).joined(separator: ", ")

    private let text: String
    private let words: [Substring]
    /// The keys that no condition or fault has read yet.
    private var keys: [(name: Substring, value: Substring)] = []

    /// Creates a parser for the words of a rule, at least one.
    init(_ words: [Substring]) {
        self.words = words
        text = words.joined(separator: " ")
    }

    /// Parses the rule.
    mutating func parse() throws(FaultRuleError) -> FaultRule {
        let target = try target()
        guard words.count > 1 else {
            throw FaultRuleError(
                reason: "'\(text)' has no fault; use one of: \(Self.actions); for a descriptor: "
                    + Self.descriptorActions)
        }
        try readKeys()
        let action = try action(for: target)
        var rule = FaultRule(target: target, action: action, text: text)
        try readConditions(of: &rule)
        if let key = keys.first {
            throw FaultRuleError(reason: "'\(words[0]) \(words[1])' takes no '\(key.name)'")
        }
        return rule
    }

    private func target() throws(FaultRuleError) -> FaultRule.Target {
        let word = String(words[0])
        if let subject = DescriptorFault.Subject(rawValue: word) { return .descriptor(subject) }
        if let index = Self.pipes.firstIndex(of: word), let pipe = Pipe(rawValue: index) {
            return .pipe(pipe)
        }
        if let address = Self.number(word[...], UInt8.self),
            let pipe = Pipe.allCases.first(where: { $0.address.rawValue == address })
        {
            return .pipe(pipe)
        }
        throw FaultRuleError(
            reason: "'\(word)' is not an endpoint or a descriptor; use one of: \(Self.targets)")
    }

    private mutating func readKeys() throws(FaultRuleError) {
        for word in words.dropFirst(2) {
            guard let equals = word.firstIndex(of: "=") else {
                throw FaultRuleError(reason: "'\(word)' in '\(text)' must be KEY=VALUE")
            }
            let name = word[..<equals]
            guard !keys.contains(where: { $0.name == name }) else {
                throw FaultRuleError(reason: "'\(text)' has '\(name)' twice")
            }
            keys.append((name, word[word.index(after: equals)...]))
        }
    }

    // MARK: - Fault

    private mutating func action(
        for target: FaultRule.Target
    ) throws(FaultRuleError) -> FaultRule.Action {
        let word = String(words[1])
        guard case .pipe(let pipe) = target else {
            guard let fault = DescriptorFault(rawValue: word) else {
                throw FaultRuleError(
                    reason: "'\(word)' is not a fault of a descriptor; use one of: "
                        + Self.descriptorActions)
            }
            return .descriptor(fault)
        }
        let canBeShort = pipe == .control || pipe.isIn
        switch word {
        case "stall" where !pipe.isIsochronous: return .stall
        case "nak" where !pipe.isIsochronous: return .nak(until: try nakEnd())
        case "slow" where !pipe.isIsochronous:
            return .nak(until: .after(try required("ms", try milliseconds("ms"))))
        case "short" where canBeShort:
            return .short(try required("bytes", try take("bytes", 0...Int(UInt32.max))))
        case "babble" where canBeShort: return .babble
        case "error": return .error
        case "corrupt": return .corrupt(try take("byte", 0...Int(UInt32.max)) ?? 0)
        case "disconnect": return .disconnect(reconnect: try milliseconds("reconnect"))
        case "stall", "nak", "slow":
            throw FaultRuleError(
                reason: "'\(text)': isochronous endpoints have no handshake, so '\(word)' is "
                    + "not possible")
        case "short", "babble":
            throw FaultRuleError(reason: "'\(text)': '\(word)' is possible for IN data only")
        default:
            throw FaultRuleError(reason: "'\(word)' is not a fault; use one of: \(Self.actions)")
        }
    }

    private mutating func nakEnd() throws(FaultRuleError) -> FaultRule.NAKEnd {
        let time = try milliseconds("ms")
        let queued = try take("queued", 1...LoopbackLimits.faultQueue)
        switch (time, queued) {
        case (let time?, nil): return .after(time)
        case (nil, let queued?): return .queued(queued)
        case (nil, nil): return .never
        default: throw FaultRuleError(reason: "'\(text)' has both 'ms' and 'queued'")
        }
    }

    // MARK: - Conditions

    private mutating func readConditions(of rule: inout FaultRule) throws(FaultRuleError) {
        rule.after = try take("after", 0...Int.max) ?? 0
        rule.afterBytes = try take("after-bytes", 0...UInt64.max) ?? 0
        let probability = try probability()
        rule.probability = probability ?? 1
        rule.seed = try take("seed", 0...UInt64.max) ?? 0
        if rule.target == .pipe(.control) { rule.request = try take("request", 0...UInt8.max) }
        rule.times = try times(isRepeated: probability != nil || isLasting(rule))
    }

    /// Whether the fault repeats without a limit unless the rule has `times`.
    private func isLasting(_ rule: FaultRule) -> Bool {
        if case .descriptor = rule.action { return true }
        return words[1] == "slow"
    }

    private mutating func times(isRepeated: Bool) throws(FaultRuleError) -> Int? {
        guard let value = takeText("times") else { return isRepeated ? nil : 1 }
        if value == "always" { return nil }
        guard let number = Self.number(value, Int.self), number > 0 else {
            throw FaultRuleError(
                reason: "'times=\(value)' must be a number from 1 on, or always")
        }
        return number
    }

    private mutating func probability() throws(FaultRuleError) -> Double? {
        guard let value = takeText("p") else { return nil }
        guard let number = Double(value), number > 0, number <= 1 else {
            throw FaultRuleError(reason: "'p=\(value)' must be more than 0 and at most 1")
        }
        return number
    }

    // MARK: - Values

    private mutating func takeText(_ name: String) -> Substring? {
        guard let index = keys.firstIndex(where: { $0.name == name }) else { return nil }
        return keys.remove(at: index).value
    }

    private mutating func take<Number: FixedWidthInteger>(
        _ name: String, _ range: ClosedRange<Number>
    ) throws(FaultRuleError) -> Number? {
        guard let value = takeText(name) else { return nil }
        guard let number = Self.number(value, Number.self), range.contains(number) else {
            throw FaultRuleError(
                reason: "'\(name)=\(value)' must be a number from \(range.lowerBound) to "
                    + "\(range.upperBound)")
        }
        return number
    }

    private mutating func milliseconds(_ name: String) throws(FaultRuleError) -> Duration? {
        try take(name, 0...LoopbackLimits.faultMilliseconds).map { .milliseconds($0) }
    }

    private func required<Value>(_ name: String, _ value: Value?) throws(FaultRuleError) -> Value {
        guard let value else { throw FaultRuleError(reason: "'\(text)' needs \(name)=N") }
        return value
    }

    private static func number<Number: FixedWidthInteger>(
        _ text: Substring, _ type: Number.Type
    ) -> Number? {
        text.hasPrefix("0x") ? Number(text.dropFirst(2), radix: 16) : Number(text, radix: 10)
    }
}
