// SPDX-License-Identifier: Apache-2.0

public import Foundation

/// A folder for one test, removed with its last reference.
///
/// The path is short, because that of a socket has at most 107 bytes.
public final class TemporaryFolder {
    public let path: String

    public init() throws {
        path = "/tmp/usbvfiod-test-\(UUID().uuidString.prefix(13))"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// The path of a file in the folder.
    public func file(_ name: String) -> String { "\(path)/\(name)" }

    /// The URL of a file in the folder.
    public func url(_ name: String) -> URL { URL(filePath: file(name)) }
}
