// SPDX-License-Identifier: Apache-2.0

import Foundation
import Platform
import TestKit
import Testing
import VFIOClient

@testable import VFIOUser

/// A client that sends arbitrary messages, cut at any byte, with any descriptors.
///
/// The server must survive, send complete messages only, and keep no descriptor.
/// `SEED=… swift test --filter FuzzTests` repeats a failure.
@Suite("a hostile client")
struct FuzzTests {
    static let seeds: [UInt64] = {
        if let text = ProcessInfo.processInfo.environment["SEED"], let seed = UInt64(text) {
            return [seed]
        }
        return (1...60).map { $0 &* 0x1234_5678_9abc_def1 }
    }()

    @Test("the server survives arbitrary bytes, cuts and descriptors", arguments: seeds)
    func survives(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let harness = try Harness()
        let detector = try TestPipe()
        let number = detector.writeNumber
        if Int.random(in: 0..<8, using: &random) > 0 {
            try harness.negotiate(
                Bool.random(using: &random) ? "{}" : #"{"capabilities":{"pgsizes":4096}}"#)
        }
        var received: [UInt8] = []
        var stream: [UInt8] = []
        for _ in 0..<300 where harness.ends.isEmpty {
            stream += message(&random)
            // Parts that end at any byte, some with descriptors.
            while stream.count > 4000 || (!stream.isEmpty && Bool.random(using: &random)) {
                let size = min(stream.count, Int.random(in: 1...200, using: &random))
                let descriptors =
                    Int.random(in: 0..<6, using: &random) == 0
                    ? [CInt](repeating: number, count: Int.random(in: 1...20, using: &random)) : []
                guard
                    let sent = try? harness.client.sendSome(
                        Array(stream[..<size]), descriptors: descriptors)
                else { break }
                stream.removeFirst(sent)
                try harness.runUntilIdle()
                if let bytes = try harness.client.receiveSome(1 << 20) { received += bytes }
            }
        }
        try harness.runUntilIdle()
        while let bytes = try harness.client.receiveSome(1 << 20), !bytes.isEmpty {
            received += bytes
            try harness.runUntilIdle()
        }
        try checkAnswers(received)

        let ended = !harness.ends.isEmpty
        harness.client.close()
        let end = try harness.end()
        if !ended { #expect(end == .clientDisconnected) }
        for vectors in harness.device.events.indices {
            for vector in harness.device.events[vectors].indices {
                harness.device.events[vectors][vector] = nil
            }
        }
        #expect(try detector.areCopiesClosed())
    }

    /// Requires that the received bytes are complete replies.
    private func checkAnswers(_ bytes: [UInt8]) throws {
        var rest = bytes[...]
        while !rest.isEmpty {
            try #require(rest.count >= 16)
            let size = Int(Array(rest.prefix(8)).integer(UInt32.self, at: 4))
            try #require(size >= 16 && size <= rest.count)
            let message = WireMessage(bytes: Array(rest.prefix(size)))
            #expect(message.isReply)
            rest = rest.dropFirst(size)
        }
    }

    /// A message that is valid in most cases.
    private func message(_ random: inout SplitMix64) -> [UInt8] {
        let command = UInt16.random(in: 0...19, using: &random)
        var payload: [UInt8]
        switch command {
        case 2:
            payload = WireMessage.dmaMap(
                flags: UInt32.random(in: 0...3, using: &random), offset: odd(&random),
                address: odd(&random), size: odd(&random))
        case 3:
            payload = WireMessage.dmaUnmap(
                flags: UInt32.random(in: 0...3, using: &random), address: odd(&random),
                size: odd(&random))
        case 8:
            payload = WireMessage.setIRQs(
                flags: UInt32.random(in: 0...63, using: &random),
                index: UInt32.random(in: 0...5, using: &random),
                start: UInt32(truncatingIfNeeded: odd(&random)),
                count: UInt32.random(in: 0...24, using: &random),
                data: bytes(Int.random(in: 0...24, using: &random), &random))
        case 9:
            payload = WireMessage.region(
                UInt32.random(in: 0...9, using: &random), offset: offset(&random),
                count: UInt32.random(in: 0...64, using: &random))
        case 10:
            let data = bytes(Int.random(in: 0...64, using: &random), &random)
            payload = WireMessage.region(
                UInt32.random(in: 0...9, using: &random), offset: offset(&random),
                count: UInt32(data.count), data: data)
        default:
            payload = bytes(Int.random(in: 0...80, using: &random), &random)
        }
        switch Int.random(in: 0..<20, using: &random) {
        case 0: payload = bytes(payload.count, &random)
        case 1: payload.removeLast(Int.random(in: 0...payload.count, using: &random))
        case 2: payload += bytes(20, &random)
        default: break
        }
        var flags: UInt32 = 0
        switch Int.random(in: 0..<12, using: &random) {
        case 0, 1: flags = WireMessage.noReply
        case 2: flags = WireMessage.reply
        case 3: flags = UInt32.random(in: 0...255, using: &random) & ~0xe
        default: break
        }
        var bytes = WireMessage(
            id: UInt16.random(in: 0...UInt16.max, using: &random), command: command, flags: flags,
            payload: payload
        ).bytes
        // Rarely, an invalid header, after which the stream has no meaning.
        if Int.random(in: 0..<600, using: &random) == 0 {
            bytes[Int.random(in: 4..<12, using: &random)] = UInt8.random(
                in: 0...255, using: &random)
        }
        return bytes
    }

    private func bytes(_ count: Int, _ random: inout SplitMix64) -> [UInt8] {
        (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
    }

    /// An offset that is within a region in most cases.
    private func offset(_ random: inout SplitMix64) -> UInt64 {
        Int.random(in: 0..<4, using: &random) == 0
            ? odd(&random) : UInt64.random(in: 0...0x1010, using: &random)
    }

    /// A small number, a large one, or one at a limit.
    private func odd(_ random: inout SplitMix64) -> UInt64 {
        switch Int.random(in: 0..<6, using: &random) {
        case 0: UInt64.random(in: 0...64, using: &random)
        case 1: UInt64.random(in: 0...0x5000, using: &random)
        case 2: UInt64.max - UInt64.random(in: 0...64, using: &random)
        case 3: 1 << UInt64.random(in: 0...63, using: &random)
        case 4: UInt64.random(in: 0...UInt64.max, using: &random)
        default: UInt64.random(in: 0...8, using: &random) * 0x1000
        }
    }
}
