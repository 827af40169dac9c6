// SPDX-License-Identifier: Apache-2.0

/// An error in a fault script.
struct FaultScriptError: Error, Equatable {
    /// The line of the rule, counted from 1.
    var line: Int
    var reason: String
}

/// The parser of fault scripts: rules on lines or between semicolons, and comments behind `#`.
///
///     bulk-in stall after=100
///     control nak ms=500 request=0x09 times=2
///
/// See docs/loopback.md for the rules.
enum FaultScript {
    /// Parses the rules of a script.
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
                do throws(FaultRuleError) {
                    var parser = FaultRuleParser(words)
                    rules.append(try parser.parse())
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
