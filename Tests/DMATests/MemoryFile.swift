// SPDX-License-Identifier: Apache-2.0

import CLinux
import DMA
import Glibc
import Platform
import SystemPackage

/// A memfd with known contents, which a test can read, write and truncate.
final class MemoryFile {
    private let file: OwnedDescriptor

    /// The byte at each offset is that offset, modulo 251.
    init(size: Int) throws {
        file = OwnedDescriptor(
            owning: try systemCall { clinux_memfd_create("test", CLINUX_MFD_CLOEXEC) })
        try write((0..<size).map { UInt8($0 % 251) }, at: 0)
    }

    func descriptor() throws -> OwnedDescriptor { try file.duplicate() }

    func write(_ bytes: [UInt8], at offset: Int) throws {
        let number = file.rawValue
        let count = try systemCall { pwrite(number, bytes, bytes.count, offset) }
        precondition(count == bytes.count, "\(count) bytes written")
    }

    func read(_ count: Int, at offset: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let number = file.rawValue
        _ = try systemCall { pread(number, &bytes, count, offset) }
        return bytes
    }

    func truncate(to size: Int) throws {
        let number = file.rawValue
        _ = try systemCall { ftruncate(number, size) }
    }
}

/// Remote memory: an array, and a list of the accesses.
final class FakeRemote: RemoteMemory {
    struct Access: Equatable {
        let address: UInt64
        let count: Int
        let isWrite: Bool
    }

    var contents: [UInt8]
    let base: UInt64
    var accesses: [Access] = []
    var failure: DMAError.Reason?
    /// Called during an access, when requests of the client may be handled.
    var meanwhile: (() -> Void)?

    init(base: UInt64, size: Int) {
        self.base = base
        contents = (0..<size).map { UInt8($0 % 249) }
    }

    func read(_ bytes: UnsafeMutableRawBufferPointer, at address: GuestAddress) throws(DMAError) {
        accesses.append(Access(address: address.rawValue, count: bytes.count, isWrite: false))
        meanwhile?()
        if let failure { throw DMAError(failure, at: address, count: bytes.count) }
        let start = Int(address.rawValue - base)
        bytes.copyBytes(from: contents[start..<start + bytes.count])
    }

    func write(_ bytes: UnsafeRawBufferPointer, at address: GuestAddress) throws(DMAError) {
        accesses.append(Access(address: address.rawValue, count: bytes.count, isWrite: true))
        meanwhile?()
        if let failure { throw DMAError(failure, at: address, count: bytes.count) }
        let start = Int(address.rawValue - base)
        contents.replaceSubrange(start..<start + bytes.count, with: bytes)
    }
}

extension GuestMemory {
    func bytes(_ count: Int, at address: UInt64) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xee, count: count)
        try bytes.withUnsafeMutableBytes { try read(into: $0, at: GuestAddress(address)) }
        return bytes
    }

    func write(_ bytes: [UInt8], at address: UInt64) throws {
        try bytes.withUnsafeBytes { try write($0, at: GuestAddress(address)) }
    }
}
