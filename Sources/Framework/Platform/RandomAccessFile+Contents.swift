// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

extension RandomAccessFile {
    /// Reads the file from the beginning, and blocks until that is done.
    ///
    /// - Parameter limit: the number of bytes to read at most.
    /// - Returns: the bytes, fewer than `limit` if the file is shorter.
    /// - Throws: the errno of preadv2(2).
    public func contents(atMost limit: Int) throws(Errno) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: max(limit, 0))
        var count = 0
        while count < bytes.count {
            var span = bytes.mutableSpan
            let readCount = try unsafe span.withUnsafeMutableBytes { buffer throws(Errno) -> Int in
                var target = IOVectors()
                unsafe target.append(UnsafeMutableRawBufferPointer(rebasing: buffer[count...]))
                return try read(into: target, at: UInt64(count), waiting: true)
            }
            guard readCount > 0 else { break }
            count += readCount
        }
        return Array(bytes.prefix(count))
    }
}
