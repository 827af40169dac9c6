// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import Platform
import SystemPackage
import TestKit
import Testing

/// VMTests also runs this suite in a guest, because most containers have no disk to read.
@Suite struct RandomAccessFileTests {
    /// A disk of this machine that the process may read.
    private static let disk: String? = {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/sys/block")) ?? []
        let disks = names.filter { name in ["sd", "vd", "nvme"].contains { name.hasPrefix($0) } }
        return disks.map { "/dev/\($0)" }.first { path in
            ((try? RandomAccessFile(opening: path, []).size()) ?? 0) > 1 << 20
        }
    }()

    /// The node of a disk lies in devtmpfs, a file system without a disk.
    @Test(.enabled(if: disk != nil, "no disk can be read"))
    func `a read of a disk that would block fails with EAGAIN`() throws {
        let file = try RandomAccessFile(opening: try #require(Self.disk), [])
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { bytes.deallocate() }
        var segments = IOVectors()
        segments.append(bytes)
        // A block that a mounted file system uses stays in the page cache, so several are tried.
        let step = try file.size() / 64 / 4096 * 4096
        let offset = try #require(
            try (1..<64).lazy.map { $0 * step }.first { offset in
                posix_fadvise(file.descriptor.rawValue, off_t(offset), 4096, POSIX_FADV_DONTNEED)
                do {
                    _ = try file.read(into: segments, at: offset, waiting: false)
                } catch .wouldBlock { return true }
                return false
            })
        // The kernel may drop the page again while memory is short.
        let isCached = holdsEventually {
            #expect(throws: Never.self) {
                try file.read(into: segments, at: offset, waiting: true)
            }
            do { return try file.read(into: segments, at: offset, waiting: false) == 4096 } catch {
                return false
            }
        }
        #expect(isCached)
    }
}
