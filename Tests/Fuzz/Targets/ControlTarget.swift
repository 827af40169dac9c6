// SPDX-License-Identifier: Apache-2.0

import Glibc

/// The lines and descriptors of a client of the control socket.
enum ControlTarget: FuzzTarget {
    static let name = "control"

    static func run(_ input: inout FuzzInput) throws {
        let bench = try ControlBench()
        while !input.isAtEnd { try step(&input, bench) }
        try bench.finish()
    }

    private static func step(_ input: inout FuzzInput, _ bench: ControlBench) throws {
        switch input.byte() % 12 {
        case 0: try bench.send(input.bytes(atMost: 255))
        case 1: try bench.send(input.bytes(atMost: 80), descriptors: input.number(0...3))
        case 2: try bench.send([10])
        case 3: bench.finishOne(input.number(0...7))
        case 4: try bench.pass(.milliseconds(input.number(0...12_000)))
        case 5: try repeated(&input, bench)
        case 6: try bench.reconnect()
        case 7: bench.disconnect(input.number(0...7))
        default: try request(&input, bench)
        }
    }

    /// Sends a byte up to 65535 times, and a line feed up to 511 times, because each is a request.
    private static func repeated(_ input: inout FuzzInput, _ bench: ControlBench) throws {
        let byte = input.byte()
        let count = input.number(0...65_535)
        try bench.send([UInt8](repeating: byte, count: byte == 10 ? count % 512 : count))
    }

    /// Sends a request that is mostly valid.
    private static func request(_ input: inout FuzzInput, _ bench: ControlBench) throws {
        let id = input.pick(["a", "b", "fake-1", "loopback-1", ""])
        let specification = input.pick([
            "fake", "fake:slow", "fake:portless", "fake:broken", "fake:lossy", "fake:id=b,slow",
            "loopback:speed=full", "loopback:fault=bulk-in stall", "nothing",
            "fake:file=x,readonly",
        ])
        let more = input.flag() ? #","force":true"# : ""
        let text: String
        let kind = input.byte()
        switch kind % 8 {
        case _ where kind >= 240:
            let channel = input.pick(["9", "10", "-1", "1.0", "1e99", "true", "null", #""1""#])
            let rest = input.pick([
                "", #","band":"fm""#, #","band":"""#, #","note":"12345678""#,
                #","note":"123456789""#, #","file":"/x""#, #","file":"""#, #","other":1"#,
            ])
            text = #"{"request":"tune","id":"\#(id)","channel":\#(channel)\#(rest)}"#
        case 0: text = #"{"request":"list"}"#
        case 1, 2: text = #"{"request":"attach","spec":"\#(specification)"}"#
        case 3: text = #"{"request":"attach","spec":"\#(specification)","id":"\#(id)"}"#
        case 4: text = #"{"request":"detach","id":"\#(id)"}"#
        case 5: text = #"{"request":"insert","id":"\#(id)","spec":"file=x"\#(more)}"#
        case 6: text = #"{"request":"eject","id":"\#(id)"\#(more)}"#
        default:
            let rules = input.pick(["", "bulk-in stall after=1", "nonsense", "control slow ms=9"])
            text = #"{"request":"faults","id":"\#(id)","rules":"\#(rules)"}"#
        }
        let count = input.byte() % 4 == 0 ? 1 : 0
        try bench.send(Array(text.utf8) + [10], descriptors: count)
    }
}
