// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// An image in a file or a block device of the host.
final class FileImage: DiskImage {
    /// The caches between a write and the disk.
    enum CacheMode: String, CaseIterable, Sendable {
        /// The page cache, until the guest flushes it.
        case writeback
        /// None: a write ends when the data is on the disk.
        case writethrough
        /// The disk's own cache only (`O_DIRECT`), until the guest flushes it.
        case none
    }

    let byteCount: UInt64
    let isReadOnly: Bool
    /// The canonical path of the file.
    let path: String

    private let file: RandomAccessFile
    /// The file opened with `O_DIRECT`, for aligned accesses; other accesses use ``file``.
    private let directFile: RandomAccessFile?
    /// The error of opening with `O_DIRECT`; ``CacheMode/none`` then uses the page cache.
    let directError: Errno?

    private var isDirect: Bool { directFile != nil }

    /// The size limit, 2^48 bytes.
    static let largestSize: UInt64 = 1 << 48

    /// Opens and locks an image.
    convenience init(path: String, readOnly: Bool, cache: CacheMode) throws(ImageError) {
        try self.init(
            Self.open(path, readOnly: readOnly), named: path, readOnly: readOnly, cache: cache)
    }

    /// Locks an image whose descriptor was received; `path` is its name in messages.
    convenience init(
        _ descriptor: consuming OwnedDescriptor, named path: String, readOnly: Bool,
        cache: CacheMode
    ) throws(ImageError) {
        let file: RandomAccessFile
        do throws(Errno) {
            file = try RandomAccessFile(adopting: descriptor, writable: !readOnly)
        } catch {
            throw ImageError(adopting: path, error)
        }
        try self.init(file, named: path, readOnly: readOnly, cache: cache)
    }

    private init(
        _ file: consuming RandomAccessFile, named path: String, readOnly: Bool, cache: CacheMode
    ) throws(ImageError) {
        do throws(Errno) {
            try file.lock(exclusively: !readOnly)
        } catch {
            throw error == .wouldBlock ? .inUse(path) : .cannot("lock", path, error)
        }
        let paths: (openable: String, canonical: String)
        do throws(Errno) {
            byteCount = try file.size()
            paths = try file.paths()
        } catch {
            throw .cannot("examine", path, error)
        }
        self.path = paths.canonical
        isReadOnly = readOnly
        guard byteCount > 0 else { throw .empty(path) }
        guard byteCount % UInt64(blockSize) == 0 else { throw .oddSize(path, byteCount) }
        guard byteCount <= Self.largestSize else { throw .tooLarge(path, byteCount) }
        var direct: RandomAccessFile?
        var directError: Errno?
        if cache == .none {
            do throws(Errno) {
                direct = try RandomAccessFile(
                    opening: paths.openable, readOnly ? [.direct] : [.direct, .writable])
            } catch {
                directError = error
            }
        }
        directFile = direct
        self.directError = directError
        self.file = file
    }

    /// Opens the file of an image.
    static func open(_ path: String, readOnly: Bool) throws(ImageError) -> RandomAccessFile {
        do throws(Errno) {
            return try RandomAccessFile(
                opening: path, readOnly ? [] : [.writable, .unusedByHost])
        } catch {
            throw ImageError(opening: path, error)
        }
    }

    /// The absolute path without symbolic links, which is the same for every name of the image.
    static func canonicalPath(
        _ file: borrowing RandomAccessFile, named path: String
    ) throws(ImageError) -> String {
        do throws(Errno) { return try file.paths().canonical } catch {
            throw .cannot("examine", path, error)
        }
    }

    func read(into segments: IOVectors, at offset: UInt64, waiting: Bool) throws(Errno) -> Int {
        guard isDirect else { return try file.read(into: segments, at: offset, waiting: waiting) }
        // Direct I/O always waits for the disk.
        guard waiting else { throw .wouldBlock }
        if isAlignedForDirectIO(segments, offset),
            let count = try directFile?.read(into: segments, at: offset, waiting: true)
        {
            return count
        }
        return try file.read(into: segments, at: offset, waiting: true)
    }

    func write(
        _ segments: IOVectors, at offset: UInt64, durably: Bool, waiting: Bool
    ) throws(Errno) -> Int {
        guard isDirect else {
            return try file.write(segments, at: offset, durably: durably, waiting: waiting)
        }
        guard waiting else { throw .wouldBlock }
        if isAlignedForDirectIO(segments, offset),
            let count = try directFile?.write(
                segments, at: offset, durably: durably, waiting: true)
        {
            return count
        }
        return try file.write(segments, at: offset, durably: durably, waiting: true)
    }

    /// Whether offset and segments are aligned to a page, which suffices for direct I/O on any
    /// disk.
    private func isAlignedForDirectIO(_ segments: IOVectors, _ offset: UInt64) -> Bool {
        offset % 4096 == 0 && segments.isAligned(to: 4096)
    }

    func flush() throws(Errno) { try file.synchronizeData() }

    func punchHole(at offset: UInt64, count: UInt64) throws(Errno) {
        try file.punchHole(at: offset, count: count)
    }

    func zeroRange(at offset: UInt64, count: UInt64) throws(Errno) {
        try file.zeroRange(at: offset, count: count)
    }
}
