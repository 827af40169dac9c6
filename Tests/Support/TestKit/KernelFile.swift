// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// The text of a file below `/proc` or `/sys`.
///
/// Foundation takes a short read for the end of a file, but the kernel makes short reads of such
/// files.
public func kernelFile(_ path: String) -> String? {
    guard let file = fopen(path, "re") else { return nil }
    defer { fclose(file) }
    var text: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = fread(&chunk, 1, chunk.count, file)
        if count == 0 { return String(decoding: text, as: UTF8.self) }
        text += chunk[..<count]
    }
}
