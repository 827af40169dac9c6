// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform

/// A temporary file in memory that keeps its name until the code under test has opened it.
final class ScratchFile {
    let path: String
    private let descriptor: OwnedDescriptor

    init(size: Int) throws {
        var template = Array("/dev/shm/usbvfiod-fuzz-XXXXXX".utf8CString)
        let number = try systemCall { mkstemp(&template) }
        _ = fcntl(number, F_SETFD, FD_CLOEXEC)
        descriptor = OwnedDescriptor(owning: number)
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        try truncate(to: size)
    }

    deinit { removeName() }

    func removeName() { _ = unlink(path) }

    func truncate(to size: Int) throws {
        let number = descriptor.rawValue
        _ = try systemCall { ftruncate(number, size) }
    }

    var size: Int {
        var status = stat()
        fstat(descriptor.rawValue, &status)
        return status.st_size
    }

    var contents: [UInt8] {
        let size = size
        return [UInt8](unsafeUninitializedCapacity: size) { bytes, count in
            count = max(pread(descriptor.rawValue, bytes.baseAddress, size, 0), 0)
        }
    }
}
