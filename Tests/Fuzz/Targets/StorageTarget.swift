// SPDX-License-Identifier: Apache-2.0

import USB

/// CBWs, units of UAS, SCSI and everything else that a host may say to a stick, on a file that others
/// make shorter.
enum StorageTarget: FuzzTarget {
    static let name = "storage"

    private static let imageSize = 64 << 10

    static func run(_ input: inout FuzzInput) throws {
        let options = input.byte()
        let isReadOnly = options & 1 != 0
        let file = try ScratchFile(size: imageSize)
        let host = try StickHost(
            "storage:file=\(file.path)" + (isReadOnly ? ",readonly" : "")
                + (options & 2 != 0 ? ",speed=high" : "")
                + (options & 4 != 0 ? ",cache=writethrough" : "")
                + (options & 8 != 0 ? ",removable=off" : "")
                + (options & 32 != 0 ? ",uas" : ""))
        file.removeName()
        if options & 16 == 0 { host.setConfiguration(1) }
        if options & 48 == 32 { host.chooseUAS(streams: options & 64 == 0 ? 8 : 0) }
        var wasCut = false
        while !input.isAtEnd {
            if options & 32 != 0, input.flag() {
                try uasStep(&input, host)
            } else {
                try step(&input, host, file, &wasCut)
            }
        }
        try host.settle()

        // A write makes a file longer that was cut, but not longer than the medium.
        let size = file.size
        try require(
            size == imageSize || (wasCut && size < imageSize), "the file has \(size) bytes")
        if isReadOnly {
            try require(file.contents.allSatisfy { $0 == 0 }, "a file that is only read changes")
        }
        try recover(host)
        try host.stop()
    }

    private static func step(
        _ input: inout FuzzInput, _ host: StickHost, _ file: ScratchFile, _ wasCut: inout Bool
    ) throws {
        switch input.byte() % 16 {
        case 0...4: try command(&input, host)
        case 5:
            let direction: Direction = input.flag() ? .in : .out
            let length = Int(input.integer(UInt32.self))
            let block = input.bytes(atMost: 16)
            host.submit(
                StickHost.outEndpoint,
                StickHost.wrapper(block, length: length, direction, tag: 7))
        case 6: host.submit(StickHost.outEndpoint, input.bytes(atMost: 64))
        case 7:
            let count = Int(input.integer(UInt16.self))
            host.submit(
                StickHost.outEndpoint, [UInt8](repeating: input.byte(), count: count),
                pieces: input.number(1...4))
        case 8:
            let count = Int(input.integer(UInt16.self))
            host.submit(
                StickHost.inEndpoint, [UInt8](repeating: 0, count: count),
                pieces: input.number(1...4))
        case 9: host.submit(StickHost.inEndpoint, [UInt8](repeating: 0, count: 13))
        case 10: host.control(SetupPacket(wire: input.integer() & 0x0fff_ffff_ffff_ffff))
        case 11: host.cancel(input.number(0...7))
        case 12:
            switch input.byte() % 4 {
            case 0: host.device?.reset()
            case 1: try host.replug()
            case 2: host.setConfiguration(1)
            default: host.device?.setSuspended(input.flag())
            }
        case 13: host.recover()
        case 14:
            // Somebody else makes the file shorter, or as long as it was.
            try host.settle()
            try file.truncate(to: input.flag() ? imageSize : input.number(0...imageSize - 1))
            wasCut = true
        default: try host.settle()
        }
        try host.check()
    }

    /// What only a host of UAS does. Tags and streams are few, so that they meet.
    private static func uasStep(_ input: inout FuzzInput, _ host: StickHost) throws {
        let tag = UInt16(input.byte() % 12)
        switch input.byte() % 8 {
        case 0, 1:
            let header = [1, 0, 0, UInt8(tag), input.byte(), 0, 0, 0]
            let unit = [0, input.byte() / 128, 0, 0, 0, 0, 0, 0]
            let block = input.bytes(atMost: 16)
            host.submit(
                StickHost.commandEndpoint,
                header + unit + block + [UInt8](repeating: 0, count: 16 - block.count))
        case 2:
            let function: [UInt8] = [5, 0, 0, UInt8(tag), input.byte(), 0, 0, input.byte() % 12]
            host.submit(StickHost.commandEndpoint, function + [UInt8](repeating: 0, count: 8))
        case 3: host.submit(StickHost.commandEndpoint, input.bytes(atMost: 40))
        case 4:
            let room = input.flag() ? 112 : Int(input.byte())
            host.submit(
                StickHost.statusEndpoint, [UInt8](repeating: 0, count: room),
                as: .bulk(stream: tag))
        case 5, 6:
            let endpoint = input.flag() ? StickHost.inEndpoint : StickHost.outEndpoint
            let count = input.number(0...8192)
            host.submit(
                endpoint, [UInt8](repeating: input.byte(), count: count),
                as: .bulk(stream: tag), pieces: input.number(1...4))
        default: host.chooseUAS(streams: input.number(0...12))
        }
        try host.check()
    }

    /// A command of a host that keeps to the rules: who fails must say why.
    private static func command(_ input: inout FuzzInput, _ host: StickHost) throws {
        let direction: Direction = input.flag() ? .in : .out
        let length = input.number(0...4096)
        let fill = input.byte()
        let block = input.bytes(atMost: 15) + [0]
        while !host.waiting.isEmpty {
            let count = host.waiting.count
            host.cancel(0)
            try host.settle()
            try require(host.waiting.count < count, "a transfer is not given back")
        }
        host.chooseBulkOnly()
        host.recover()
        let (outcome, _) = try host.run(block, length: length, direction, fill: fill)
        guard outcome == .failed else { return }
        let sense = try host.run([3, 0, 0, 0, 18, 0], length: 18, .in)
        try require(sense.outcome == .passed, "no sense data after \(block): \(sense.outcome)")
        try require(
            sense.data.count == 18 && sense.data[0] & 0x7e == 0x70 && sense.data[2] & 0xf != 0,
            "\(block) fails for no reason: \(sense.data)")
    }

    /// Whatever happened, a host that resets the stick can use it again.
    private static func recover(_ host: StickHost) throws {
        host.device?.reset()
        try host.settle()
        try require(host.waiting.isEmpty, "a reset leaves \(host.waiting.count) transfers")
        host.setConfiguration(1)
        let inquiry = try host.run([0x12, 0, 0, 0, 36, 0], length: 36, .in)
        try require(inquiry.outcome == .passed, "INQUIRY after a reset: \(inquiry.outcome)")
        try require(inquiry.data.count == 36, "INQUIRY after a reset: \(inquiry.data)")
    }
}
