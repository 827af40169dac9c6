// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import Loopback

/// The parser of fault scripts.
@Suite struct FaultScriptTests {
    private func rule(_ text: String) throws -> FaultRule {
        let rules = try FaultScript.parse(text)
        try #require(rules.count == 1)
        return rules[0]
    }

    private func reason(_ text: String) -> String {
        do {
            _ = try FaultScript.parse(text)
            return ""
        } catch {
            return "\(error.line): \(error.reason)"
        }
    }

    @Test func `each fault is parsed`() throws {
        let expected: [(String, FaultRule.Target, FaultRule.Action)] = [
            ("bulk-in stall", .pipe(.bulkIn), .stall),
            ("0x81 stall", .pipe(.bulkIn), .stall),
            ("2 stall", .pipe(.interruptOut), .stall),
            ("control nak", .pipe(.control), .nak(until: .never)),
            ("bulk-out nak ms=20", .pipe(.bulkOut), .nak(until: .after(.milliseconds(20)))),
            ("bulk-out nak queued=3", .pipe(.bulkOut), .nak(until: .queued(3))),
            ("interrupt-in slow ms=7", .pipe(.interruptIn), .nak(until: .after(.milliseconds(7)))),
            ("iso-in short bytes=0x10", .pipe(.isoIn), .short(16)),
            ("control babble", .pipe(.control), .babble),
            ("iso-out error", .pipe(.isoOut), .error),
            ("bulk-out corrupt byte=9", .pipe(.bulkOut), .corrupt(9)),
            ("bulk-out corrupt", .pipe(.bulkOut), .corrupt(0)),
            ("interrupt-out disconnect", .pipe(.interruptOut), .disconnect(reconnect: nil)),
            (
                "control disconnect reconnect=0", .pipe(.control),
                .disconnect(reconnect: .zero)
            ),
            ("device-descriptor truncated", .descriptor(.device), .descriptor(.truncated)),
            (
                "configuration-descriptor contradictory", .descriptor(.configuration),
                .descriptor(.contradictory)
            ),
        ]
        for (text, target, action) in expected {
            let rule = try rule(text)
            #expect(rule.target == target, "\(text)")
            #expect(rule.action == action, "\(text)")
            #expect(rule.text == text)
        }
    }

    @Test func `conditions are parsed`() throws {
        let plain = try rule("bulk-in stall")
        #expect(plain.times == 1 && plain.after == 0 && plain.probability == 1)
        let full = try rule("bulk-in stall p=0.25 seed=0x10 after=7 after-bytes=4096 times=3")
        #expect(full.after == 7 && full.afterBytes == 4096 && full.times == 3)
        #expect(full.probability == 0.25 && full.seed == 16)
        #expect(try rule("bulk-in stall times=always").times == nil)
        #expect(try rule("bulk-in stall p=1").times == nil)
        #expect(try rule("bulk-in slow ms=1").times == nil)
        #expect(try rule("bulk-in slow ms=1 times=2").times == 2)
        #expect(try rule("device-descriptor overlong").times == nil)
        #expect(try rule("control stall request=9").request == 9)
    }

    @Test func `rules are separated by line breaks or semicolons, and comments are skipped`() throws
    {
        let rules = try FaultScript.parse(
            """
            # a bad cable

              bulk-in   error p=0.01  # now and then; often enough
            \tbulk-out error; control stall;
            ;;
            """)
        #expect(rules.map(\.text) == ["bulk-in error p=0.01", "bulk-out error", "control stall"])
        #expect(try FaultScript.parse("").isEmpty)
    }

    @Test(arguments: [
        (
            "bulk stall",
            "1: 'bulk' is not an endpoint or a descriptor; use one of: control, bulk-in"
        ),
        ("0x84 stall", "1: '0x84' is not an endpoint"),
        ("\nbulk-in", "2: 'bulk-in' has no fault; use one of: stall, nak"),
        ("bulk-in explode", "1: 'explode' is not a fault; use one of: stall, nak, slow"),
        ("device-descriptor stall", "1: 'stall' is not a fault of a descriptor; use one of: trunc"),
        ("bulk-in truncated", "1: 'truncated' is not a fault"),
        ("bulk-in stall now", "1: 'now' in 'bulk-in stall now' must be KEY=VALUE"),
        ("bulk-in stall after=1 after=2", "has 'after' twice"),
        ("bulk-in stall ms=3", "'bulk-in stall' takes no 'ms'"),
        ("bulk-in stall request=3", "'bulk-in stall' takes no 'request'"),
        ("iso-in stall", "have no handshake, so 'stall' is not possible"),
        ("iso-out nak", "so 'nak' is not possible"),
        ("iso-out slow ms=1", "so 'slow' is not possible"),
        ("bulk-out short bytes=3", "'short' is possible for IN data only"),
        ("interrupt-out babble", "'babble' is possible for IN data only"),
        ("bulk-in short", "'bulk-in short' needs bytes=N"),
        ("bulk-in slow", "'bulk-in slow' needs ms=N"),
        ("bulk-in nak ms=1 queued=1", "has both 'ms' and 'queued'"),
        ("bulk-in nak queued=32", "'queued=32' must be a number from 1 to 31"),
        ("bulk-in nak ms=3600001", "must be a number from 0 to 3600000"),
        ("bulk-in stall after=-1", "'after=-1' must be a number from 0"),
        ("bulk-in stall times=0", "'times=0' must be a number from 1 on, or always"),
        ("bulk-in stall p=0", "'p=0' must be more than 0 and at most 1"),
        ("bulk-in stall p=1.01", "must be more than 0"),
        ("bulk-in stall p=nan", "must be more than 0"),
        ("bulk-in stall after=", "'after=' must be a number"),
        ("bulk-in stall seed=99999999999999999999", "must be a number from 0"),
        ("control stall request=256", "must be a number from 0 to 255"),
    ])
    func `an error names the line and the allowed values`(text: String, expected: String) {
        #expect(reason(text).contains(expected), "\(reason(text))")
    }

    @Test func `a script has a maximum size and number of rules`() {
        let rules = String(repeating: "bulk-in stall\n", count: LoopbackLimits.faultRules)
        #expect(reason(rules) == "")
        #expect(reason(rules + "bulk-in stall").contains("257: there are at most 256 rules"))
        let comment = "#" + String(repeating: "x", count: LoopbackLimits.faultScript - 1)
        #expect(reason(comment) == "")
        #expect(reason(comment + "x").contains("at most 65536 bytes"))
    }

    @Test func `no text makes the parser trap`() {
        var generator = SplitMix64(seed: 1)
        let words = [
            "bulk-in", "control", "stall", "nak", "=", "p=", "after=1", ";", "#", "\n", "é", "0x",
            "times=always", "ms=9", "\u{0}", "queued=0", "  ", "short", "bytes=1", "p=1e400",
        ]
        for _ in 0..<3000 {
            let count = Int(generator.next() % 9)
            let text = (0..<count).map { _ in words[Int(generator.next() % UInt64(words.count))] }
                .joined(separator: generator.next() % 4 == 0 ? "" : " ")
            _ = try? FaultScript.parse(text)
        }
    }
}
