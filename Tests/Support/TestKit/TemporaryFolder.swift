// SPDX-License-Identifier: Apache-2.0

public import Foundation

/// A folder of one test's own; it is removed with its last reference.
///
/// Its path is short, because the name of a socket has 107 bytes at most.
public final class TemporaryFolder {
    public let path: String

    public init() throws {
        path = "/tmp/usbvfiod-test-\(UUID().uuidString.prefix(13))"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// The path of a file in it.
    public func file(_ name: String) -> String { "\(path)/\(name)" }

    /// The same as a URL.
    public func url(_ name: String) -> URL { URL(filePath: file(name)) }
}
