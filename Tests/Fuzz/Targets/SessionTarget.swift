// SPDX-License-Identifier: Apache-2.0

import GuestKit
import Logging
import Platform
import VFIOClient
import VFIOUser

/// A vfio-user session with any bytes and descriptors from the client, in segments of any size.
///
/// Each complete request gets one reply, the device is called only with regions, vectors and memory
/// that exist, and each received descriptor is closed by the end.
enum SessionTarget: FuzzTarget {
    static let name = "session"

    static func run(_ input: inout FuzzInput) throws {
        let bench = try SessionBench()
        if input.flag() {
            bench.queue(
                1,
                WireMessage.version(
                    minor: 1, json: Array(#"{"capabilities":{"max_msg_fds":16}}"#.utf8) + [0]))
        }
        while !input.isAtEnd, try step(&input, bench) {}
        try bench.finish()
    }

    /// - Returns: false after the last step.
    private static func step(_ input: inout FuzzInput, _ bench: SessionBench) throws -> Bool {
        switch input.byte() % 16 {
        case 0: bench.queue(raw: input.bytes(atMost: 255))
        case 1:
            // The last message may be sent in part.
            try bench.send(atMost: input.number(1...64))
        case 2: try bench.send(atMost: .max, descriptors: input.number(0...20))
        case 3: try bench.send(atMost: .max)
        // Unused. Their bytes are read so that the recorded corpus keeps its meaning.
        case 4: _ = input.number(0...7)
        case 5: _ = input.flag()
        case 6: try bench.advance(by: .milliseconds(input.number(0...5000)))
        case 7: bench.device.refusesMemory = input.flag()
        case 8:
            // The client's replies are in the socket before the device accesses memory.
            try bench.send(atMost: .max)
            bench.queue(raw: Array(input.bytes(atMost: 255)))
            try bench.accessMemory(
                address: input.edge(), count: input.number(1...5000), writes: input.flag())
            return false
        default: message(&input, bench)
        }
        return true
    }

    /// Queues a message that is valid apart from a few fields.
    private static func message(_ input: inout FuzzInput, _ bench: SessionBench) {
        let command = UInt16(input.number(0...20))
        let flags = input.byte()
        var payload: [UInt8]
        switch command {
        case WireMessage.Command.dmaMap:
            payload = WireMessage.dmaMap(
                flags: UInt32(input.byte() & 7), offset: input.edge(), address: input.edge(),
                size: input.edge())
        case WireMessage.Command.dmaUnmap:
            payload = WireMessage.dmaUnmap(
                flags: UInt32(input.byte() & 7), address: input.edge(), size: input.edge())
        case WireMessage.Command.getRegionInfo:
            payload = WireMessage.regionInfo(index: UInt32(truncatingIfNeeded: input.edge()))
        case WireMessage.Command.getIRQInfo:
            payload = WireMessage.irqInfo(index: UInt32(truncatingIfNeeded: input.edge()))
        case WireMessage.Command.setIRQs:
            payload = WireMessage.setIRQs(
                flags: UInt32(input.byte()), index: UInt32(input.byte() % 8),
                start: UInt32(truncatingIfNeeded: input.edge()),
                count: UInt32(truncatingIfNeeded: input.edge()), data: input.bytes(atMost: 24))
        case WireMessage.Command.regionRead:
            payload = WireMessage.region(
                UInt32(input.byte() % 12), offset: input.edge(),
                count: UInt32(truncatingIfNeeded: input.edge()))
        case WireMessage.Command.regionWrite:
            let data = input.bytes(atMost: 64)
            payload = WireMessage.region(
                UInt32(input.byte() % 12), offset: input.edge(), count: UInt32(data.count),
                data: data)
        case WireMessage.Command.regionWriteMulti:
            payload = [input.byte()] + [0, 0, 0, 0, 0, 0, 0]
            for _ in 0..<input.number(0...5) {
                payload += WireMessage.region(
                    UInt32(input.byte() % 12), offset: input.edge(),
                    count: UInt32(input.byte() % 10),
                    data: [1, 2, 3, 4, 5, 6, 7, 8])
            }
        case WireMessage.Command.version:
            payload = WireMessage.version(
                major: UInt16(input.byte() % 2), minor: UInt16(input.byte()),
                json: input.bytes(atMost: 128))
        default: payload = input.bytes(atMost: 64)
        }
        if flags & 0x40 != 0 { payload.removeLast(min(payload.count, input.number(0...40))) }
        if flags & 0x80 != 0 { payload += input.bytes(atMost: 40) }
        // Bits 6 and 7 of the byte have been used above.
        bench.queue(command, payload, flags: UInt32(flags & 0x30))
    }
}
