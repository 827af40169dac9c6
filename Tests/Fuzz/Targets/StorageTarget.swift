// SPDX-License-Identifier: Apache-2.0

import USB

/// Fuzzes the storage backend: CBWs, information units of UAS, SCSI commands, control requests,
/// resets and cancellations, on a file that other processes truncate.
enum StorageTarget: FuzzTarget {
    static let name = "storage"

    private static let imageSize = 64 << 10

    static func run(_ input: inout FuzzInput) throws {
        let options = input.byte()
        let isReadOnly = options & 1 != 0
        let file = try ScratchFile(size: imageSize)
        let host = try MassStorageHost(
            "storage:file=\(file.path)" + (isReadOnly ? ",readonly" : "")
                + (options & 2 != 0 ? ",speed=high" : "")
                + (options & 4 != 0 ? ",cache=writethrough" : "")
                + (options & 8 != 0 ? ",removable=off" : "")
                + (options & 32 != 0 ? ",uas" : ""))
        file.removeName()
        if options & 16 == 0 { host.setConfiguration(1) }
        if options & 48 == 32 { host.chooseUAS(streams: options & 64 == 0 ? 8 : 0) }
        var wasTruncated = false
        while !input.isAtEnd {
            if options & 32 != 0, input.flag() {
                try uasStep(&input, host)
            } else {
                try step(&input, host, file, &wasTruncated)
            }
        }
        try host.drainWorker()

        // A write extends a truncated file, but not beyond the size of the medium.
        let size = file.size
        try require(
            size == imageSize || (wasTruncated && size < imageSize), "the file has \(size) bytes")
        if isReadOnly {
            try require(file.contents.allSatisfy { $0 == 0 }, "a read-only file has changed")
        }
        try recover(host)
        try host.stop()
    }

    private static func step(
        _ input: inout FuzzInput, _ host: MassStorageHost, _ file: ScratchFile,
        _ wasTruncated: inout Bool
    ) throws {
        switch input.byte() % 16 {
        case 0...4: try command(&input, host)
        case 5:
            let direction: Direction = input.flag() ? .in : .out
            let length = Int(input.integer(UInt32.self))
            let block = input.bytes(atMost: 16)
            host.submit(
                MassStorageHost.outEndpoint,
                MassStorageHost.wrapper(block, length: length, direction, tag: 7))
        case 6: host.submit(MassStorageHost.outEndpoint, input.bytes(atMost: 64))
        case 7:
            let count = Int(input.integer(UInt16.self))
            host.submit(
                MassStorageHost.outEndpoint, [UInt8](repeating: input.byte(), count: count),
                segments: input.number(1...4))
        case 8:
            let count = Int(input.integer(UInt16.self))
            host.submit(
                MassStorageHost.inEndpoint, [UInt8](repeating: 0, count: count),
                segments: input.number(1...4))
        case 9: host.submit(MassStorageHost.inEndpoint, [UInt8](repeating: 0, count: 13))
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
            // Another process truncates the file, or restores its size.
            try host.drainWorker()
            try file.truncate(to: input.flag() ? imageSize : input.number(0...imageSize - 1))
            wasTruncated = true
        default: try host.drainWorker()
        }
        try host.check()
    }

    /// A step of a UAS host. Tags and streams are few, so that they collide.
    private static func uasStep(_ input: inout FuzzInput, _ host: MassStorageHost) throws {
        let tag = UInt16(input.byte() % 12)
        switch input.byte() % 8 {
        case 0, 1:
            let header = [1, 0, 0, UInt8(tag), input.byte(), 0, 0, 0]
            let unit = [0, input.byte() / 128, 0, 0, 0, 0, 0, 0]
            let block = input.bytes(atMost: 16)
            host.submit(
                MassStorageHost.commandEndpoint,
                header + unit + block + [UInt8](repeating: 0, count: 16 - block.count))
        case 2:
            let function: [UInt8] = [5, 0, 0, UInt8(tag), input.byte(), 0, 0, input.byte() % 12]
            host.submit(MassStorageHost.commandEndpoint, function + [UInt8](repeating: 0, count: 8))
        case 3: host.submit(MassStorageHost.commandEndpoint, input.bytes(atMost: 40))
        case 4:
            let room = input.flag() ? 112 : Int(input.byte())
            host.submit(
                MassStorageHost.statusEndpoint, [UInt8](repeating: 0, count: room),
                as: .bulk(stream: tag))
        case 5, 6:
            let endpoint = input.flag() ? MassStorageHost.inEndpoint : MassStorageHost.outEndpoint
            let count = input.number(0...8192)
            host.submit(
                endpoint, [UInt8](repeating: input.byte(), count: count),
                as: .bulk(stream: tag), segments: input.number(1...4))
        default: host.chooseUAS(streams: input.number(0...12))
        }
        try host.check()
    }

    /// A command of a conforming host. A failed command must have sense data.
    private static func command(_ input: inout FuzzInput, _ host: MassStorageHost) throws {
        let direction: Direction = input.flag() ? .in : .out
        let length = input.number(0...4096)
        let fill = input.byte()
        let block = input.bytes(atMost: 15) + [0]
        while !host.waiting.isEmpty {
            let count = host.waiting.count
            host.cancel(0)
            try host.drainWorker()
            try require(host.waiting.count < count, "a cancelled transfer does not complete")
        }
        host.chooseBulkOnly()
        host.recover()
        let (outcome, _) = try host.run(block, length: length, direction, fill: fill)
        guard outcome == .failed else { return }
        let sense = try host.run([3, 0, 0, 0, 18, 0], length: 18, .in)
        try require(sense.outcome == .passed, "no sense data after \(block): \(sense.outcome)")
        try require(
            sense.data.count == 18 && sense.data[0] & 0x7e == 0x70 && sense.data[2] & 0xf != 0,
            "\(block) fails without sense data: \(sense.data)")
    }

    /// Checks that the device works after a reset.
    private static func recover(_ host: MassStorageHost) throws {
        host.device?.reset()
        try host.drainWorker()
        try require(host.waiting.isEmpty, "a reset leaves \(host.waiting.count) transfers")
        host.setConfiguration(1)
        let inquiry = try host.run([0x12, 0, 0, 0, 36, 0], length: 36, .in)
        try require(inquiry.outcome == .passed, "INQUIRY after a reset: \(inquiry.outcome)")
        try require(inquiry.data.count == 36, "INQUIRY after a reset: \(inquiry.data)")
    }
}
