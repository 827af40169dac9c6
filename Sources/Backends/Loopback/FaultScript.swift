// SPDX-License-Identifier: Apache-2.0

internal import USB

/// What is wrong with a fault script, and in which rule.
struct FaultScriptError: Error, Equatable {
    /// Counts from 1.
    var line: Int
    var reason: String
}

/// Reads rules: one a line or between semicolons, with comments behind `#`.
///
///     bulk-in stall after=100
///     control nak ms=500 request=0x09 times=2
///
/// A rule is where, what, and then `key=value` in any order.
enum FaultScript {
    static func parse(_ text: String) throws(FaultScriptError) -> [FaultRule] {
        guard text.utf8.count <= LoopbackLimits.faultScript else {
            throw FaultScriptError(
                line: 1, reason: "a script has at most \(LoopbackLimits.faultScript) bytes")
        }
        var rules: [FaultRule] = []
        let lines = text.split(omittingEmptySubsequences: false) { $0.isNewline }
        for (index, line) in lines.enumerated() {
            let code = line.prefix { $0 != "#" }
            for part in code.split(separator: ";") {
                let words = part.split { $0.isWhitespace }
                guard !words.isEmpty else { continue }
                do throws(RuleReader.Mistake) {
                    var reader = RuleReader(words)
                    rules.append(try reader.rule())
                } catch {
                    throw FaultScriptError(line: index + 1, reason: error.reason)
                }
                guard rules.count <= LoopbackLimits.faultRules else {
                    throw FaultScriptError(
                        line: index + 1,
                        reason: "there are at most \(LoopbackLimits.faultRules) rules")
                }
            }
        }
        return rules
    }
}

/// Reads the words of one rule.
private struct RuleReader {
    struct Mistake: Error {
        var reason: String
    }

    private let text: String
    private let words: [Substring]
    private var keys: [(name: Substring, value: Substring)] = []

    init(_ words: [Substring]) {
        self.words = words
        text = words.joined(separator: " ")
    }

    private static let pipes = [
        "control", "bulk-in", "bulk-out", "interrupt-in", "interrupt-out", "iso-in", "iso-out",
    ]
    private static let places =
        (pipes + DescriptorFault.Subject.allCases.map(\.rawValue)).joined(separator: ", ")
        + " or an address such as 0x81"
    private static let actions =
        "stall, nak, slow, short, babble, error, corrupt, disconnect"
    private static let descriptorActions =
        DescriptorFault.allCases.map(\.rawValue).joined(separator: ", ")

    mutating func rule() throws(Mistake) -> FaultRule {
        let target = try target()
        guard words.count > 1 else {
            throw Mistake(
                reason: "'\(text)' does not say what happens: \(Self.actions); to a descriptor: "
                    + Self.descriptorActions)
        }
        try readKeys()
        let action = try action(for: target)
        var rule = FaultRule(target: target, action: action, text: text)
        try readConditions(of: &rule)
        if let key = keys.first {
            throw Mistake(reason: "'\(key.name)' means nothing to '\(words[0]) \(words[1])'")
        }
        return rule
    }

    private func target() throws(Mistake) -> FaultRule.Target {
        let word = String(words[0])
        if let subject = DescriptorFault.Subject(rawValue: word) { return .descriptor(subject) }
        if let place = Self.pipes.firstIndex(of: word), let pipe = Pipe(rawValue: place) {
            return .pipe(pipe)
        }
        if let address = Self.number(word[...], UInt8.self),
            let pipe = Pipe.allCases.first(where: { $0.address.rawValue == address })
        {
            return .pipe(pipe)
        }
        throw Mistake(reason: "'\(word)' is no place for a fault; there are: \(Self.places)")
    }

    private mutating func readKeys() throws(Mistake) {
        for word in words.dropFirst(2) {
            guard let equals = word.firstIndex(of: "=") else {
                throw Mistake(reason: "'\(word)' in '\(text)' must be KEY=VALUE")
            }
            let name = word[..<equals]
            guard !keys.contains(where: { $0.name == name }) else {
                throw Mistake(reason: "'\(text)' gives '\(name)' twice")
            }
            keys.append((name, word[word.index(after: equals)...]))
        }
    }

    // MARK: - What

    private mutating func action(for target: FaultRule.Target) throws(Mistake) -> FaultRule.Action {
        let word = String(words[1])
        guard case .pipe(let pipe) = target else {
            guard let fault = DescriptorFault(rawValue: word) else {
                throw Mistake(
                    reason: "'\(word)' cannot happen to a descriptor; there are: "
                        + Self.descriptorActions)
            }
            return .descriptor(fault)
        }
        let canBeShort = pipe == .control || pipe.isIn
        switch word {
        case "stall" where !pipe.isIsochronous: return .stall
        case "nak" where !pipe.isIsochronous: return .hold(try hold())
        case "slow" where !pipe.isIsochronous:
            return .hold(.time(try required("ms", try milliseconds("ms"))))
        case "short" where canBeShort:
            return .short(try required("bytes", try take("bytes", 0...Int(UInt32.max))))
        case "babble" where canBeShort: return .babble
        case "error": return .error
        case "corrupt": return .corrupt(try take("byte", 0...Int(UInt32.max)) ?? 0)
        case "disconnect": return .disconnect(reconnect: try milliseconds("reconnect"))
        case "stall", "nak", "slow":
            throw Mistake(
                reason: "'\(text)': isochronous transfers have no handshake, so '\(word)' cannot be"
            )
        case "short", "babble":
            throw Mistake(reason: "'\(text)': only data that goes IN can be '\(word)'")
        default:
            throw Mistake(reason: "'\(word)' is no fault; there are: \(Self.actions)")
        }
    }

    private mutating func hold() throws(Mistake) -> FaultRule.Hold {
        let time = try milliseconds("ms")
        let queued = try take("queued", 1...LoopbackLimits.faultQueue)
        switch (time, queued) {
        case (let time?, nil): return .time(time)
        case (nil, let queued?): return .queued(queued)
        case (nil, nil): return .forever
        default: throw Mistake(reason: "'\(text)': either 'ms' or 'queued'")
        }
    }

    // MARK: - When

    private mutating func readConditions(of rule: inout FaultRule) throws(Mistake) {
        rule.after = try take("after", 0...Int.max) ?? 0
        rule.afterBytes = try take("after-bytes", 0...UInt64.max) ?? 0
        let probability = try probability()
        rule.probability = probability ?? 1
        rule.seed = try take("seed", 0...UInt64.max) ?? 0
        if rule.target == .pipe(.control) { rule.request = try take("request", 0...UInt8.max) }
        rule.times = try times(isRepeated: probability != nil || isLasting(rule))
    }

    /// What happens always unless it is said how often: what may happen or not, what makes a device
    /// slow, and what a descriptor looks like.
    private func isLasting(_ rule: FaultRule) -> Bool {
        if case .descriptor = rule.action { return true }
        return words[1] == "slow"
    }

    private mutating func times(isRepeated: Bool) throws(Mistake) -> Int? {
        guard let value = takeText("times") else { return isRepeated ? nil : 1 }
        if value == "always" { return nil }
        guard let number = Self.number(value, Int.self), number > 0 else {
            throw Mistake(reason: "'times=\(value)' must be a number from 1 on, or always")
        }
        return number
    }

    private mutating func probability() throws(Mistake) -> Double? {
        guard let value = takeText("p") else { return nil }
        guard let number = Double(value), number > 0, number <= 1 else {
            throw Mistake(reason: "'p=\(value)' must be more than 0 and at most 1")
        }
        return number
    }

    // MARK: - Values

    private mutating func takeText(_ name: String) -> Substring? {
        guard let place = keys.firstIndex(where: { $0.name == name }) else { return nil }
        return keys.remove(at: place).value
    }

    private mutating func take<Number: FixedWidthInteger>(
        _ name: String, _ range: ClosedRange<Number>
    ) throws(Mistake) -> Number? {
        guard let value = takeText(name) else { return nil }
        guard let number = Self.number(value, Number.self), range.contains(number) else {
            throw Mistake(
                reason: "'\(name)=\(value)' must be a number from \(range.lowerBound) to "
                    + "\(range.upperBound)")
        }
        return number
    }

    private mutating func milliseconds(_ name: String) throws(Mistake) -> Duration? {
        try take(name, 0...LoopbackLimits.faultMilliseconds).map { .milliseconds($0) }
    }

    private func required<Value>(_ name: String, _ value: Value?) throws(Mistake) -> Value {
        guard let value else { throw Mistake(reason: "'\(text)' needs \(name)=…") }
        return value
    }

    private static func number<Number: FixedWidthInteger>(
        _ text: Substring, _ type: Number.Type
    ) -> Number? {
        text.hasPrefix("0x") ? Number(text.dropFirst(2), radix: 16) : Number(text, radix: 10)
    }
}
