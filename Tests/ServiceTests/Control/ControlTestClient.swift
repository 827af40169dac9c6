// SPDX-License-Identifier: Apache-2.0

import Service
import VFIOClient

/// A client of the control socket, which sends lines and parses the answers.
final class ControlTestClient {
    let wire: WireClient
    private var input: [UInt8] = []

    init(_ wire: WireClient) { self.wire = wire }

    func send(_ line: String, descriptors: [CInt] = []) throws {
        try wire.send(Array("\(line)\n".utf8), descriptors: descriptors)
    }

    func answer() throws -> ControlAnswer {
        while true {
            if let end = input.firstIndex(of: UInt8(ascii: "\n")) {
                let line = Array(input[..<end])
                input.removeFirst(end + 1)
                guard let answer = ControlAnswer(line: line) else {
                    throw WireClient.Failure("no answer: \(String(decoding: line, as: UTF8.self))")
                }
                return answer
            }
            let more = try wire.receiveOnce(upTo: 65536)
            if more.isEmpty { throw WireClient.Failure("the server closed the connection") }
            input += more
        }
    }

    @discardableResult
    func ask(_ line: String, descriptors: [CInt] = []) throws -> ControlAnswer {
        try send(line, descriptors: descriptors)
        return try answer()
    }

    func list() throws -> [ControlDevice] { try ask(#"{"request":"list"}"#).devices ?? [] }
}
