// SPDX-License-Identifier: Apache-2.0

import Foundation
import Platform
import TestKit
import Testing

@Suite struct FileContentsTests {
    @Test(arguments: [0, 1, 9, 10, 11])
    func `contents are limited to a number of bytes`(limit: Int) throws {
        let folder = try TemporaryFolder()
        try Data(0..<10).write(to: folder.url("contents"))
        let file = try RandomAccessFile(opening: folder.file("contents"), [])
        #expect(try file.contents(atMost: limit) == Array(0..<UInt8(min(limit, 10))))
    }
}
