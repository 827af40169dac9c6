// SPDX-License-Identifier: Apache-2.0

import Foundation
import Platform
import Testing

@Suite struct FileContentsTests {
    @Test(arguments: [0, 1, 9, 10, 11])
    func `contents are limited to a number of bytes`(limit: Int) throws {
        let path = NSTemporaryDirectory() + "contents-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: path) }
        try Data(0..<10).write(to: URL(filePath: path))
        let file = try RandomAccessFile(opening: path, [])
        #expect(try file.contents(atMost: limit) == Array(0..<UInt8(min(limit, 10))))
    }
}
