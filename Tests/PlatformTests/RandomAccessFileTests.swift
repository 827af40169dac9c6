// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import Platform
import SystemPackage
import Testing

/// Where no disk may be read, as in most containers, VMTests runs this in a guest.
@Suite struct RandomAccessFileTests {
    /// Some disk of this machine that may be read.
    private static let disk: String? = {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/sys/block")) ?? []
        let disks = names.filter { name in ["sd", "vd", "nvme"].contains { name.hasPrefix($0) } }
        return disks.map { "/dev/\($0)" }.first { path in
            ((try? RandomAccessFile(opening: path, []).size()) ?? 0) > 1 << 20
        }
    }()

    /// Its node lies in a file system that is memory; the disk behind it does not.
    @Test(.enabled(if: disk != nil, "there is no disk that may be read"))
    func `a disk says that it would have to be waited for`() throws {
        let file = try RandomAccessFile(opening: try #require(Self.disk), [])
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { bytes.deallocate() }
        var pieces = IOVectors()
        pieces.append(bytes)
        let offset = try file.size() / 8192 * 4096
        posix_fadvise(file.descriptor.rawValue, off_t(offset), 4096, POSIX_FADV_DONTNEED)
        #expect(throws: Errno.wouldBlock) {
            try file.read(into: pieces, at: offset, waiting: false)
        }
        #expect(try file.read(into: pieces, at: offset, waiting: true) == 4096)
        #expect(try file.read(into: pieces, at: offset, waiting: false) == 4096)
    }
}
