// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestKit

/// A file that is deleted with this object.
final class TemporaryFile {
    private let folder: TemporaryFolder
    let path: String

    init(size: UInt64, fill: ((Int) -> UInt8)? = nil) throws {
        folder = try TemporaryFolder()
        path = folder.file("stick.img")
        _ = FileManager.default.createFile(atPath: path, contents: nil)
        guard let handle = FileHandle(forUpdatingAtPath: path) else {
            throw CocoaError(.fileNoSuchFile)
        }
        if let fill {
            try handle.write(contentsOf: Data((0..<Int(size)).map(fill)))
        } else {
            try handle.truncate(atOffset: size)
        }
        try handle.close()
    }

    var contents: [UInt8] {
        (try? Data(contentsOf: URL(fileURLWithPath: path))).map(Array.init) ?? []
    }
}
