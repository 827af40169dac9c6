// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

extension RandomAccessFile {
    /// What is in the file, at most the first `limit` bytes.
    public func contents(atMost limit: Int) throws(Errno) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: max(limit, 0))
        var count = 0
        while count < bytes.count {
            var span = bytes.mutableSpan
            let moved = try unsafe span.withUnsafeMutableBytes { buffer throws(Errno) -> Int in
                var pieces = IOVectors()
                unsafe pieces.append(UnsafeMutableRawBufferPointer(rebasing: buffer[count...]))
                return try read(into: pieces, at: UInt64(count), waiting: true)
            }
            guard moved > 0 else { break }
            count += moved
        }
        return Array(bytes.prefix(count))
    }
}
