// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import MassStorage

/// A test suite of USB Attached SCSI with an image of known contents.
protocol UASSuite {
    var image: FakeImage { get }
}

extension UASSuite {
    /// The initial contents of the image.
    static var pattern: [UInt8] { initialContents }

    static func makeImage() -> FakeImage {
        let image = FakeImage(byteCount: UInt64(pattern.count))
        image.fill(at: 0, pattern)
        return image
    }

    static var inquiry: [UInt8] { [0x12, 0, 0, 0, 36, 0] }

    /// READ (10).
    static func read(_ block: UInt8, _ count: UInt8) -> [UInt8] {
        [0x28, 0, 0, 0, 0, block, 0, 0, count, 0]
    }

    /// WRITE (10).
    static func write(_ block: UInt8, _ count: UInt8) -> [UInt8] {
        [0x2a, 0, 0, 0, 0, block, 0, 0, count, 0]
    }

    /// The initial contents of a range of blocks.
    func bytes(_ block: Int, _ count: Int) -> [UInt8] {
        Array(Self.pattern[block * 512..<(block + count) * 512])
    }

    /// The present contents of the image.
    var contents: [UInt8] { image.bytes(at: 0, count: Self.pattern.count) }

    /// Checks that the next command works and that no transfer was completed twice.
    func expectOperational(_ uas: UASHost) {
        #expect(uas.run(Self.read(3, 2), in: 1024) == (.good, bytes(3, 2)))
        #expect(uas.host.port.doubles.isEmpty)
    }
}

private let initialContents = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 / 512 &+ $0) }
